"""Looking to Listen: separates the voices of faces in a video."""

from nn.systems.system import System


def define_options(live):
    """Flags of videos and their faces."""
    if live:
        return
    from absl import flags

    from feat.avspeech.embed_faces import DETECTORS

    flags.DEFINE_bool("render", False, "Looking to Listen: also write a video of every face with its voice")
    flags.DEFINE_enum("detector", "mtcnn", DETECTORS, "of faces; told: boxes are in <video>.faces.csv")
    flags.DEFINE_string("face_weights", "", "FaceNet's weights, for networks that go by its embeddings")


SYSTEM = System(
    name="looking_to_listen",
    title="Looking to Listen",
    checkpoints=("looking_to_listen",),
    package=__name__,
    recordings="AudioVisual",
    define_options=define_options,
)

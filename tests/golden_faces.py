"""Procedures of the golden cases of the audio-visual pipeline: mixing, tables, detection and embedding of faces."""

import numpy as np
from golden_case import summary

from feat.avspeech import boxes, geometry, tables
from feat.avspeech.clean import clean_tables
from feat.avspeech.clips import Problem, stem_of, write_corrupt
from feat.avspeech.detector import Detector
from feat.avspeech.mix import REFERENCE_PREFIX, find_pieces, make_mixtures, reference_rows
from feat.signals.audio import read_pcm16, write_pcm16
from models.looking_to_listen.facenet import InceptionResnetV1
from nn.systems.looking_to_listen.facenet import FaceNet

LEAST_OVERLAP = 0.85  # of boxes by MTCNNs of two packages, which round and sample differently
LANDMARK_PIXELS = 5
# Where pieces end early, the length of ffmpeg's next block depends on how fast it gets its inputs.
AMIX_TOLERANCE = 5e-4


def mixing(case, folder):
    """Combinations, numbers, tables and samples of the reference's mixing stage."""
    data, config = folder / "data" / "train", case.config
    rate, talkers = config["sample_rate"], config["sources"]
    for name in map(str, case["in/files"]):
        write_pcm16(data / "audio" / name, case["in/" + name], rate)
    rows = reference_rows(
        find_pieces(data), talkers, config["validation_size"], config.get("dataset_size"), prefix=REFERENCE_PREFIX
    )
    make_mixtures(data, rows, talkers, {}, prefix=REFERENCE_PREFIX, parity=True, num_workers=1)
    for name in ("train", "val"):
        assert (data / f"{name}.csv").read_text().splitlines() == list(case[f"out/{name}_csv"]), name
    for key, samples in case.named("out").items():
        if key.startswith("mixed_"):
            ours = read_pcm16(data / "mixed" / key.removeprefix("mixed_"), rate)[:: config["out_stride"]]
            case.check(key, ours, samples, AMIX_TOLERANCE)


def cleaning(case, folder):
    """The lines that are left of the tables after each cleaning step."""
    data, loader = folder / "data" / "train", folder / "loader"
    sets = ("train", "val")
    for name in sets:
        path = data / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(case[f"in/{name}_csv"]) + "\n")
    (data / "mixed").mkdir()
    for index, size in zip(case["in/mixed_index"], case["in/mixed_bytes"]):
        (data / "mixed" / f"{index}.wav").write_bytes(bytes(int(size)))

    def compare(step, kinds=("src", "loader")):
        for name in sets:
            for kind, path in (("src", data), ("loader", loader)):
                key = f"out/{step}/{kind}_{name}_csv"
                if key in case and kind in kinds:
                    assert (path / f"{name}.csv").read_text().splitlines() == list(case[key]), key

    clean_tables(data, case.config["minimum_bytes"], parity=True, loader_folder=loader)
    compare("after_remove_empty")
    compare("after_transform")
    bad = dict.fromkeys(map(str, case["in/corrupt_list"]))
    write_corrupt(data, "faces", [Problem(stem_of(path), "listed by the reference") for path in bad])
    clean_tables(data, case.config["minimum_bytes"], parity=True, loader_folder=loader)
    # The reference's last step writes the tables of src over those of loader, whose paths then lead nowhere.
    compare("after_remove_corrupt", kinds=("src",))
    assert all(tables.read_table(data / f"{name}.csv") for name in sets)


def face_detect(case, folder):
    """Boxes, landmarks, the box that holds the point, and its crop."""
    image, config = case["in/image"], case.config
    detector = Detector(config["min_face"], tuple(config["thresholds"]), config["factor"])
    found, theirs = detector(image), case["out/boxes"].reshape(-1, 4)
    assert len(found.boxes) == len(theirs), f"{len(found.boxes)} faces, reference {len(theirs)}"
    overlap = np.diag(geometry.overlaps(found.boxes, theirs))
    assert (overlap >= LEAST_OVERLAP).all(), f"boxes overlap by {overlap} only"
    off = np.abs(found.landmarks - case["out/landmarks"]).max(initial=0)
    assert off <= LANDMARK_PIXELS, f"landmarks are off by {off:.1f} pixels"
    height, width = image.shape[:2]
    chosen = boxes.holding(found.boxes, config["point"][0] * width, config["point"][1] * height)
    assert (-1 if chosen is None else chosen) == int(case["out/chosen"])
    if chosen is not None and "out/crop" in case:
        share = config["margin"] / (config["crop"] - config["margin"]) / 2  # it is in pixels of the crop, both sides
        crop = boxes.crop(image, theirs[chosen].astype(float), config["crop"], share)
        stride = -(-config["crop"] // case["out/crop"].shape[0])
        # Rounding of one level in 255 is as good as another.
        case.check("crop", crop[::stride, ::stride], case["out/crop"], 1.01 / 255)
        case.check("probe/crop", summary(crop.transpose(2, 0, 1)), case["probe/crop"], 1e-3)


def facenet(case, folder):
    """Embeddings of crops, standardised and raw."""
    config = case.config
    model = InceptionResnetV1(config["dim"], config["scales"], config["bn_eps"])
    embedder = FaceNet(case.weights(), model=model)
    for name, standardised in (("embedding_standardised", True), ("embedding_raw_pixels", False)):
        if "out/" + name in case:
            embedder.standardised = standardised
            case.check(name, embedder.frames(case["in/crops"]), case["out/" + name])


PROCEDURES = {
    ("looking_to_listen", "mixing"): mixing,
    ("looking_to_listen", "mixing_lengths"): mixing,
    ("looking_to_listen", "tables"): cleaning,
    ("looking_to_listen", "face_detect"): face_detect,
    ("looking_to_listen", "facenet"): facenet,
}

"""SpEx+: what a person who trains it or extracts with it relies on."""

import json
import os
import pathlib
import re
import shutil
import sys

import keras
import numpy as np
import pytest
import soundfile
import speech
import tensorflow as tf
from golden_case import Case

from feat.base.files import UserError
from feat.corpora.triplets import part_stem, triplet_paths
from feat.signals.audio import write_pcm16
from models import losses
from models.layers.conv_tasnet import prelu
from models.spex_plus.network import BRANCHES, VARIANTS, SpexPlus
from nn.checkpoints import ours as checkpoint
from nn.checkpoints import readers
from nn.checkpoints import torch_file as torch_checkpoint
from nn.checkpoints.spex_plus_config import read_reference_config
from nn.systems.spex_plus import presence
from nn.systems.spex_plus.recordings import Extractor, match_level
from nn.systems.spex_plus.training import TargetExtraction
from nn.training.optimizers import make_optimizer
from nn.training.step import TrainStep

RATE = speech.RATE
SIZES = dict(filters=8, bottleneck=6, units=10, embedding_dim=5, speaker_units=7, dilations=2, repeats=2, classes=3)
WINDOWS = dict(windows=(20, 80, 160))


def make_model(variant="seed", seed=0, **settings):
    """A small model whose every weight, also those that start as 0 or 1, has a value of its own."""
    keras.utils.set_random_seed(seed)
    model = SpexPlus(**VARIANTS[variant] | SIZES | WINDOWS | settings)
    random = np.random.default_rng(seed)
    for weight in model.weights:
        noise = (
            random.uniform(0.0, 0.3, weight.shape) if "variance" in weight.name else random.normal(0, 0.1, weight.shape)
        )
        weight.assign(weight + noise.astype(np.float32))
    return model


def talk(talker, seed, samples):
    return speech.voice(talker, seed, samples / RATE + 0.01)[:samples]


@pytest.mark.parametrize("norm", ["global", "channel", "batch", "cumulative"])
@pytest.mark.parametrize("variant", ["seed", "authors"])
def test_padded_batch_gives_what_its_items_give_alone(variant, norm):
    model = make_model(variant, norm=norm)
    lengths, enrolled = [1500, 2013, 1900], [2400, 1800, 2111]
    mixtures = [talk(0, i, n) + talk(1, i, n) for i, n in enumerate(lengths)]
    enrolments = [talk(0, 9 + i, n) for i, n in enumerate(enrolled)]

    def padded(signals):
        longest = max(map(len, signals))
        # Whatever is behind the end must not matter.
        return np.stack([np.append(x, np.full(longest - len(x), 0.3, np.float32)) for x in signals])

    together = model(
        dict(
            mixture=padded(mixtures),
            enrolment=padded(enrolments),
            samples=np.array(lengths, np.int32),
            enrolment_samples=np.array(enrolled, np.int32),
        )
    )
    for i, (mixture, enrolment) in enumerate(zip(mixtures, enrolments)):
        alone = model({"mixture": mixture[None], "enrolment": enrolment[None]})
        for name in ("embedding", "logits"):
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-3, atol=1e-5)
        for branch in BRANCHES:
            theirs, ours = alone[branch][0].numpy(), together[branch][i].numpy()
            np.testing.assert_allclose(ours[: len(theirs)], theirs, atol=1e-4 * np.abs(theirs).max())
            assert not ours[len(theirs) :].any()


@pytest.mark.parametrize("norm", ["channel", "cumulative"])
def test_causal_model_sees_no_more_of_the_future_than_its_longest_window(norm):
    model = make_model(norm=norm, causal=True)
    embedding = np.ones((1, SIZES["embedding_dim"]), np.float32)
    mixture = talk(0, 1, 3000)[None]
    changed = mixture.copy()
    changed[:, 2000:] = talk(1, 2, 1000)
    before, after = (model.extract(x, embedding, branches=BRANCHES) for x in (mixture, changed))
    for branch in BRANCHES:
        same = 2000 - model.windows[2]
        np.testing.assert_allclose(before[branch][:, :same], after[branch][:, :same], atol=1e-5)
        assert np.abs(before[branch] - after[branch]).max() > 1e-3


def test_channel_softmax_does_not_depend_on_the_rest_of_the_batch():
    model = make_model(mask="softmax")
    embedding = np.ones((2, SIZES["embedding_dim"]), np.float32)
    mixtures = np.stack([talk(0, 1, 1000), talk(1, 2, 1000)])
    both = model.extract(mixtures, embedding)["short"]
    alone = model.extract(mixtures[:1], embedding[:1])["short"]
    np.testing.assert_allclose(both[:1], alone, atol=1e-5)


@pytest.mark.parametrize("branch, highest_hz", [("short", 4000), ("middle", 2000), ("long", 1000)])
def test_fourier_start_gives_the_lower_bins_of_the_mixture_back(branch, highest_hz):
    """64 filters of windows of 32, 64 and 128 samples hold 32, 16 and 8 of their bins and a bit."""
    model = make_model(**dict(filters=64, windows=(32, 64, 128)))
    model.start_as_fourier()
    i = BRANCHES.index(branch)
    time = np.arange(2000) / RATE
    for frequency, passes in ((0.4 * highest_hz, True), (1.6 * highest_hz, False)):
        if frequency < RATE / 2:
            tone = np.sin(2 * np.pi * frequency * time).astype(np.float32)
            found = model._decode(model.encode(tone[None])[..., 64 * i : 64 * (i + 1)], i)[0, : len(tone)].numpy()
            error = np.abs(found - (tone if passes else 0))[200:1800].max()
            assert error < (1e-4 if branch == "short" else 0.05)


def test_extractor_with_a_kept_embedding_gives_what_the_whole_model_gives():
    model = make_model()
    mixture, enrolment = talk(0, 1, 2001), talk(1, 2, 2500)
    extractor = Extractor(model)
    whole = model({"mixture": mixture[None], "enrolment": enrolment[None]})
    embedding = extractor.embed(enrolment)
    np.testing.assert_allclose(embedding, whole["embedding"][0], rtol=1e-4, atol=1e-6)
    estimate = extractor(mixture, embedding, level="none")
    np.testing.assert_allclose(estimate, whole["short"][0], atol=1e-5 * np.abs(whole["short"]).max() + 1e-6)


def test_extractor_takes_enrolments_and_mixtures_of_any_length():
    extractor = Extractor(make_model())
    embedding = extractor.embed(talk(0, 1, 50))
    assert np.isfinite(embedding).all()
    for samples in (1, 19, 20, 333):
        assert extractor(talk(1, 2, samples), embedding).shape == (samples,)
    with pytest.raises(ValueError, match=f"{extractor.model.shortest_enrolment} are needed"):
        extractor.model.embed(np.zeros((1, 100), np.float32))


def test_level_of_what_is_extracted():
    target, other = np.array([1.0, 1, 0, 0], np.float32), np.array([0, 0, 2.0, 0], np.float32)
    mixture = target + other
    np.testing.assert_allclose(match_level(7 * target, mixture, "projection"), target, rtol=1e-6)
    np.testing.assert_allclose(match_level(7 * target, mixture, "peak"), 2 * target, rtol=1e-6)
    np.testing.assert_allclose(match_level(7 * target, mixture, "none"), 7 * target)


@pytest.mark.parametrize("slope", [-0.5, 0.25, 1.0, 1.7])
def test_prelu_and_its_gradient(slope):
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32))
    alpha = tf.constant([slope])
    upstream = tf.cos(x)
    results = []
    for function in (prelu, lambda x, a: tf.where(x > 0, x, a * x)):
        with tf.GradientTape() as tape:
            tape.watch([x, alpha])
            y = function(x, alpha)
        results.append([y, *tape.gradient(y, [x, alpha], output_gradients=upstream)])
    for ours, expected in zip(*results):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["global", "cumulative"])
def test_bfloat16_is_close_to_float32(norm):
    """Also that frames, more than bfloat16 can count, are counted in float32."""
    batch = {"mixture": talk(0, 1, 6000)[None], "enrolment": talk(1, 2, 3000)[None]}
    batch |= {"samples": np.array([5500], np.int32), "enrolment_samples": np.array([2900], np.int32)}
    expected = make_model(norm=norm)(batch)["short"].numpy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        found = make_model(norm=norm)(batch)["short"].numpy()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert found.dtype == np.float32
    assert np.sum((found - expected) ** 2) < 1e-2 * np.sum(expected**2)


def test_model_is_made_again_from_its_configuration():
    model = make_model("authors", norm="batch", mask="sigmoid", taps=5)
    again = SpexPlus.from_config(model.get_config())
    again.set_weights(model.get_weights())
    batch = {"mixture": talk(0, 1, 1000)[None], "enrolment": talk(0, 2, 2000)[None]}
    np.testing.assert_array_equal(model(batch)["short"], again(batch)["short"])


@pytest.mark.parametrize("variant, ratio", [("seed", "si_sdr"), ("authors", "si_snr")])
def test_training_lowers_the_loss(variant, ratio):
    keras.utils.set_random_seed(1)
    model = SpexPlus(**VARIANTS[variant] | SIZES | WINDOWS | dict(filters=24, bottleneck=16, units=16, repeats=1))
    batch = {
        "mixture": np.stack([talk(i, i, 2000) + talk(2, 5 + i, 2000) for i in range(2)]),
        "target": np.stack([talk(i, i, 2000) for i in range(2)]),
        "enrolment": np.stack([talk(i, 9 + i, 2500) for i in range(2)]),
        "samples": np.array([2000, 1700], np.int32),
        "enrolment_samples": np.array([2500, 2300], np.int32),
        "speaker": np.array([0, 1], np.int32),
    }
    batch = {name: tf.constant(value) for name, value in batch.items()}
    optimizer = make_optimizer("adam", 3e-3, l2=1e-5)
    optimizer.build(model.trainable_variables)
    objective = TargetExtraction(model, ratio)
    step = TrainStep(model, optimizer, objective, tf.distribute.get_strategy(), 2, clip_norm=5.0)
    step.compile({name: tf.TensorSpec([None] * len(x.shape), x.dtype) for name, x in batch.items()})
    found = [step([batch], 3e-3) for _ in range(60)]
    assert "si_sdr" not in found[0]  # metrics cost time, and are measured in validation
    assert float(found[-1]["extraction_loss"]) < min(10, float(found[0]["extraction_loss"])) - 3
    assert float(found[-1]["cross_entropy"]) < 0.3
    unknown = batch | {"speaker": tf.constant([-1, 1])}
    assert float(objective(unknown)[1]["cross_entropy"][0]) == 0


# PyTorch ------------------------------------------------------------------------------------------


@pytest.fixture
def torch_file(tmp_path):
    """A checkpoint as ir4kgl/ss_dla saves it, with a configuration object of a class that is not here."""
    torch = pytest.importorskip("torch")
    case = Case(speech.ROOT / "tests/golden/spex_plus/seed_small_short_ref.npz")
    module = type(sys)("their_project")
    config = type("TheirConfig", (), {"__module__": "their_project"})
    module.TheirConfig = config
    sys.modules["their_project"] = module
    path = tmp_path / "checkpoint.pth"
    weights = {"module." + name: torch.tensor(value) for name, value in case.weights().items()}
    try:
        torch.save({"arch": "SpexPlus", "epoch": 3, "state_dict": weights, "config": config()}, path)
    finally:
        del sys.modules["their_project"]
    return str(path), case


def test_torch_checkpoint(torch_file, tmp_path):
    path, case = torch_file
    reader = readers.open_reader(path)
    settings = reader.settings()
    model = SpexPlus(**settings)
    readers.load_for_inference(path, "spex_plus", model)
    outputs = model({"mixture": case["in/audio"], "enrolment": case["in/ref"]})
    case.check("short", outputs["short"], case["out/short"])
    other = SpexPlus(**settings | {"classes": 9})
    with pytest.raises(UserError, match="tells 5 speakers apart, the model of these flags 9; give --classes 5"):
        readers.load_for_inference(path, "spex_plus", other)
    checkpoint.restore_weights(reader, "spex_plus", other, may_differ=("classifier",))
    case.check("short", other({"mixture": case["in/audio"], "enrolment": case["in/ref"]})["short"], case["out/short"])
    broken = tmp_path / "broken.pth"
    broken.write_bytes(open(path, "rb").read()[:5000])
    with pytest.raises(UserError, match="download it again"):
        readers.open_reader(str(broken))


def test_torch_optimizer_goes_on(tmp_path):
    """The step after the file's is PyTorch's own, from its Adam, and its epoch says which step it is."""
    torch = pytest.importorskip("torch")
    case = Case(speech.ROOT / "tests/golden/spex_plus/seed_small_short_ref.npz")
    weights = {name: torch.tensor(value) for name, value in case.weights().items()}
    names = [name for name in weights if not name.endswith(torch_checkpoint.BUFFERS)]
    parameters = [torch.nn.Parameter(weights[name].clone()) for name in names]
    theirs = torch.optim.Adam(parameters, lr=2e-3)
    random = np.random.default_rng(0)

    def step():
        for parameter in parameters:
            parameter.grad = torch.tensor(random.standard_normal(parameter.shape).astype(np.float32))
        theirs.step()

    def save(name, values, **more):
        """Writes them where the weights stand, so that they are read as these are; gives the path."""
        values = weights | {"module." * bool(more) + key: x.detach().clone() for key, x in zip(names, values)}
        torch.save({"state_dict": values} | more, tmp_path / name)
        return str(tmp_path / name)

    step()
    step()
    weights = {name: x for name, x in weights.items() if name not in names}  # what is left is saved as it is
    path = save("checkpoint.pth", parameters, epoch=3, optimizer=theirs.state_dict())
    step()
    reader = readers.open_reader(path)
    assert checkpoint.training_state(reader, 10) == {"step": 31, "rate": 2e-3}
    model, holder = SpexPlus(**reader.settings()), SpexPlus(**reader.settings())
    optimizer = make_optimizer("adam", 2e-3)
    optimizer.build(model.trainable_variables)
    checkpoint.restore_weights(reader, "spex_plus", model)
    assert checkpoint.restore_optimizer(reader, model, optimizer)
    gradients = save("gradients.pth", [parameter.grad for parameter in parameters])
    readers.load_for_inference(gradients, "spex_plus", holder)
    optimizer.update([tf.constant(weight.numpy()) for weight in holder.trainable_variables], tf.constant(2e-3))
    readers.load_for_inference(save("after.pth", parameters), "spex_plus", holder)
    for ours, wanted in zip(model.trainable_variables, holder.trainable_variables):
        np.testing.assert_allclose(ours.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-6, err_msg=ours.path)


def test_torch_checkpoint_without_torch(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"PK\x03\x04 and more")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install \"deep-casa\[convert\]\""):
        readers.open_reader(str(path))


# The script ---------------------------------------------------------------------------------------

FLAGS = dict(
    variant="authors", n_filters=8, n_bottle=6, n_units=10, embedding_dim=5, n_speaker_units=7, n_blocks=1, n_repeats=1,
    batch_size=2, segment_seconds=0.4, lr_schedule="onecycle", epoch=1, save_steps=1, pictures=1, num_workers=1,
    metrics="si_sdr", corpus_flags=False,
)  # fmt: skip
CONF = """
import os
fs = 8000
chunk_len = 0.4  # (s)
chunk_size = chunk_len * fs
nnet_conf = {"L": 20, "N": 4 + 4, "X": 1, "R": 1, "B": 6, "H": 9, "P": 3, "norm": "gLN", "non_linear": "relu"}
train_dir = "triplets/tr/"
train_data = {"mix_scp": train_dir + "mix.scp", "sample_rate": fs}
adam_kwargs = {"lr": 1e-3, "weight_decay": 1e-5}
trainer_conf = {"optimizer": "adam", "optimizer_kwargs": adam_kwargs, "patience": 2, "restarts": 7}
os.remove("conf.py")
"""
LAST = 5  # the step that would come after the last


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Triplets, and a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("spex_plus")
    for set_name, count in dict(tr=8, cv=1, tt=3).items():
        for i in range(count):
            target, noise = i % 3, (i + 1) % 3
            signals = [talk(target, 10 * i, 4000), talk(noise, 10 * i + 1, 4000), talk(target, 10 * i + 2, 5000)]
            paths = triplet_paths(folder / "triplets" / set_name, part_stem(target, noise, i))
            write_pcm16(paths["mixture"], signals[0] + signals[1], RATE)
            write_pcm16(paths["target"], signals[0], RATE)
            write_pcm16(paths["enrolment"], signals[2], RATE)
    (folder / "conf.py").write_text(CONF)
    given = {
        name: value for name, value in FLAGS.items() if name not in ("variant", "n_filters", "n_bottle", "n_blocks")
    }
    printed = speech.succeed(folder, "nn/spex_plus.py", time_stamp="whole", config="conf.py", **given)
    assert "conf.py: not taken over: train_dir, train_data.mix_scp, trainer_conf.restarts" in printed
    return folder


def prefix(folder, stamp, step):
    return folder / f"exp/spex_plus/models/{stamp}/spex_plus_model.ckpt_step_{step}"


def test_resumed_run_ends_as_one_that_was_not_interrupted(folder):
    whole, again = (folder / "exp/spex_plus/models" / stamp for stamp in ("whole", "again"))
    shutil.copytree(whole, again)
    for path in again.glob("*ckpt_step_*"):
        if int(path.name.split("_step_")[1].split(".")[0]) > 2:  # at the height of the cycle
            path.unlink()
    assert "going on at step 2 of 4" in speech.succeed(
        folder, "nn/spex_plus.py", time_stamp="again", **FLAGS | {"pictures": 0}
    )
    speech.assert_same_checkpoints(prefix(folder, "whole", LAST), prefix(folder, "again", LAST))
    assert list((whole / "pictures").glob("*.png"))


def test_what_is_resumed_elsewhere_keeps_its_talkers(folder):
    """A corpus without the first talker of the classes does not move the others up."""
    (folder / "fewer/tr/part").mkdir(parents=True)
    for path in (folder / "triplets/tr/part").glob("[12]_*"):
        shutil.copy(path, folder / "fewer/tr/part")
    shutil.copytree(folder / "triplets/cv", folder / "fewer/cv")
    run = FLAGS | dict(time_stamp="fewer", data_folder="fewer", resume_model=prefix(folder, "whole", 3), pictures=0)
    speech.succeed(folder, "nn/spex_plus.py", **run)
    config = json.loads((folder / "exp/spex_plus/models/fewer/config.json").read_text())
    assert config["speakers"] == ["0", "1", "2"] and config["model"]["classes"] == 3


def test_what_is_resumed_elsewhere_goes_on(folder):
    """Weights, optimiser, schedule and order of --resume_model; --load takes the weights alone."""
    half = prefix(folder, "whole", 3)
    flags = FLAGS | {"pictures": 0}
    printed = speech.succeed(folder, "nn/spex_plus.py", time_stamp="elsewhere", resume_model=half, **flags)
    assert "weights and optimiser restored; going on at step 3 of 4" in printed
    ours, theirs = (speech.checkpoint_arrays(prefix(folder, stamp, LAST)) for stamp in ("elsewhere", "whole"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name.startswith(("weights/", "optimizer/")):
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
    assert (folder / "exp/spex_plus/models/elsewhere/best").exists()
    printed = speech.succeed(folder, "nn/spex_plus.py", time_stamp="afresh", load=half, **flags)
    assert "weights restored; starting at step 1" in printed


def test_extraction_goes_on_where_it_ended(folder):
    """The same numbers come out as in one go; a mixture that changed meanwhile is extracted again."""
    flags = dict(is_deploy=1, resume_model=prefix(folder, "whole", LAST), exp_name="ended", absent=True) | FLAGS
    flags["data_folder"] = shutil.copytree(folder / "triplets", folder / "copied")
    output = folder / "exp/ended/output_tt"
    files = {i: output / f"files/{name}.bin" for i, name in enumerate(("0_1_000000", "1_2_000001", "2_0_000002"))}
    whole = speech.succeed(folder, "nn/spex_plus.py", **flags)
    confidences = (output / "scores/confidence.csv").read_text()
    first, last = (triplet_paths(flags["data_folder"] / "tt", files[i].stem)["mixture"] for i in (0, 2))
    sound, _ = soundfile.read(last)
    soundfile.write(last, np.full(4000, np.nan), RATE, "FLOAT")
    assert "holds NaN or infinite samples" in speech.refuse(folder, "nn/spex_plus.py", **flags)
    write_pcm16(last, sound, RATE)
    with open(output / "files/unfinished.jsonl", "a", encoding="utf-8") as file:
        file.write('{"name": "2_0')  # as a kill would leave it
    os.utime(first)
    before = {i: os.stat(path).st_mtime_ns for i, path in files.items()}
    printed = speech.succeed(folder, "nn/spex_plus.py", **flags)
    assert "going on, 2 mixtures are done" in printed
    assert [os.stat(path).st_mtime_ns > before[i] for i, path in files.items()] == [True, False, True]
    assert (output / "scores/confidence.csv").read_text() == confidences
    assert printed.splitlines()[-4:-2] == whole.splitlines()[-4:-2]


def test_extraction_of_a_set_and_by_absent_talkers(folder):
    (folder / "genders").write_text("0 m\n1 f\n2 f\n")
    source = prefix(folder, "whole", LAST)
    flags = dict(is_deploy=1, resume_model=source, absent=True, genders_file="genders") | FLAGS
    output = folder / "exp/spex_plus/output_tt"
    earlier = output / "files/0_2_000009.bin"  # of a set that was extracted under the same name
    earlier.parent.mkdir(parents=True)
    np.ones(9, "<f4").tofile(earlier)
    printed = speech.succeed(folder, "nn/spex_plus.py", **flags)
    names = ("0_1_000000", "1_2_000001", "2_0_000002")
    assert [row.split(",")[0] for row in (output / "scores/scores.csv").read_text().splitlines()[2::2]] == [*names]
    assert earlier.exists()
    for name in names:
        rows = np.fromfile(output / f"files/{name}.bin", "<f4").reshape(3, -1)
        paths = triplet_paths(folder / "triplets/tt", name)
        for row, kind in ((rows[0], "target"), (rows[2], "mixture")):
            np.testing.assert_array_equal(row, soundfile.read(paths[kind], dtype="float32")[0])
    levels_db = json.loads((folder / "exp/spex_plus/models/whole/config.json").read_text())["levels_db"]
    loud = max(10 * np.log10(np.mean(np.square(rows[2][i : i + 80]))) for i in range(0, 3920, 80))
    assert loud - 10 < levels_db["mixture"] < loud + 3
    means = json.loads((output / "scores/summary.json").read_text())["systems"][1]["means"]
    assert f"mean SI-SDR:\t {means['si_sdr']}" in printed
    assert "confused" in printed and "female against male" in printed and 0 <= means["confusion"] <= 1
    header, *rows = (output / "scores/confidence.csv").read_text().splitlines()
    assert header == "utterance,confidence,absent,absent_confidence"
    assert [row.split(",")[::2] for row in rows] == [[name, who] for name, who in zip(names, "201")]
    threshold = json.loads(pathlib.Path(f"{source}.threshold.json").read_text())["threshold"]
    assert f"at {threshold:.3f}" in printed
    assert "every talker of the set is in" in speech.refuse(folder, "nn/spex_plus.py", **flags | {"set": "cv"})


def test_mean_of_the_seed_keeps_means(folder):
    flags = FLAGS | dict(is_deploy=1, resume_model=prefix(folder, "whole", LAST), exp_name="own", ratio="si_sdr")
    printed = speech.succeed(folder, "nn/spex_plus.py", **flags)
    ratios = []
    for path in sorted((folder / "exp/own/output_tt/files").glob("*.bin")):
        target, estimate, _ = np.fromfile(path, "<f4").reshape(3, -1)
        ratios.append(losses.si_sdr(estimate, target))
    (line,) = [line for line in printed.splitlines() if line.startswith("mean SI-SDR:")]
    assert float(line.split("\t")[1]) == pytest.approx(np.mean(ratios), abs=1e-4)
    means = json.loads((folder / "exp/own/output_tt/scores/summary.json").read_text())["systems"][1]["means"]
    assert abs(means["si_sdr"] - np.mean(ratios)) > 1e-3
    # All enrolments are looked at before the first mixture is extracted.
    shutil.copytree(folder / "triplets/tt", folder / "triplets/few")
    path = triplet_paths(folder / "triplets/few", "2_0_000002")["enrolment"]
    write_pcm16(path, talk(2, 1, 3000), RATE)
    line = speech.refuse(folder, "nn/spex_plus.py", **flags | {"set": "few"})
    assert "2_0_000002-ref.wav: 3000 samples" in line and "4000 are needed" in line
    assert not (folder / "exp/own/output_few").exists()


@pytest.mark.parametrize(
    ("set_name", "kind", "samples", "said"),
    [
        ("tr", "enrolment", talk(0, 1, 279), "279 samples of the wanted talker at 8000 Hz, 280 are needed"),
        ("cv", "enrolment", talk(0, 1, 279), "280 are needed; give a longer enrolment"),
        ("cv", "enrolment", np.zeros(5000, np.float32), "silent, so it shows no voice"),
        ("tr", "mixture", talk(0, 1, 10), "10 samples at 8000 Hz count, 20 are needed"),
        ("tr", "target", talk(0, 1, 10), "10 samples at 8000 Hz count, 20 are needed"),
        ("tr", "enrolment", np.append(talk(0, 1, 4999), np.nan), "NaN or infinite samples"),
    ],
)
def test_training_names_the_file_that_it_cannot_take(folder, tmp_path, set_name, kind, samples, said):
    shutil.copytree(folder / "triplets", tmp_path / "triplets")
    path = triplet_paths(tmp_path / "triplets" / set_name, "0_1_000000")[kind]
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    for flags in ([], ["--parity"]):
        line = speech.refuse(tmp_path, "nn/spex_plus.py", *flags, **FLAGS)
        assert f"{set_name}/part/{pathlib.Path(path).name}: " in line and said in line


def test_parity_keeps_its_last_epoch(folder):
    flags = FLAGS | dict(time_stamp="parity", epoch=2, pictures=0, save_steps=0)
    for again in (False, True):
        printed = speech.succeed(folder, "nn/spex_plus.py", "--parity", **flags)
        assert ("trained to the end, 8 steps" in printed) == again
        assert ("after 8 of 8 steps: validation" in printed) != again
    for flag, said in (("enrolment_seconds=0.03", "240 samples, the network needs 280; give 0.035 or more"),
                       ("segment_seconds=0", "0 samples, the network needs 20; give 0.003 or more")):  # fmt: skip
        given = {name: value for name, value in flags.items() if name != flag.split("=")[0]}
        assert said in speech.refuse(folder, "nn/spex_plus.py", "--parity", f"--{flag}", **given)


def test_several_data_folders_are_one(folder):
    """Talkers of the second are told apart from those of the first, and one who is in both is one."""
    for target, i in ((2, 0), (5, 1)):
        paths = triplet_paths(folder / "more/tr", part_stem(target, 0, i))
        for kind, signal in zip(("mixture", "target", "enrolment"), (talk(target % 3, i, 4000),) * 3):
            write_pcm16(paths[kind], signal, RATE)
    shutil.copytree(folder / "triplets/cv", folder / "more/cv")
    named = FLAGS | dict(data_folder="triplets,more", time_stamp="more", pictures=0)
    assert "5 steps an epoch" in speech.succeed(folder, "nn/spex_plus.py", **named)
    assert checkpoint.read_config(str(prefix(folder, "more", 6)))["model"]["classes"] == 4


def test_threshold_of_another_set_is_tried(tmp_path):
    source = str(tmp_path / "model.ckpt_step_1")
    for set_name in ("cv", "cv", "tt"):
        said = presence.measure_threshold(source, set_name, str(tmp_path), [0.9, 0.8, 0.3], [0.1, 0.2, 0.4])
    assert "33.3 % of those who are there are missed, 33.3 % of those who are not" in said[1]
    assert presence.read_threshold(source)["set"].endswith("/cv")
    (tmp_path / "model.ckpt_step_1.threshold.json").write_text("{}")
    with pytest.raises(UserError, match="delete it and measure it again"):
        presence.read_threshold(source)


def test_training_on_both_talkers_of_dynamic_mixtures(folder):
    """With windows of one's own, which extraction then takes from the checkpoint."""
    for talker in range(3):
        for i in range(2):
            write_pcm16(folder / f"talkers/t{talker}/{i}.wav", talk(talker, 50 + i, 4000), RATE)
    write_pcm16(folder / "talkers/t1/short.wav", talk(1, 60, 447), RATE)
    own = FLAGS | dict(time_stamp="both", windows_ms="4,8,16", filterbank="fourier", save_steps=0)
    both = dict(corpus_folder="talkers", epoch_mixtures=4, snr_db="-5,5")
    printed = speech.succeed(folder, "nn/spex_plus.py", "--dynamic_mixing", "--both_talkers", **own | both)
    assert "1 of 7 utterances are left out, silent or of fewer than 448 samples" in printed and "short.wav" in printed
    assert checkpoint.read_config(str(prefix(folder, "both", 3)))["model"]["windows"] == [32, 64, 128]
    mixture = triplet_paths("triplets/tt", "0_1_000000")["mixture"]
    one = dict(is_deploy=1, resume_model=prefix(folder, "both", 3), mixture=mixture,
               enrolment="talkers/t0/0.wav", output="out/one.wav", variant="authors", corpus_flags=False)  # fmt: skip
    speech.succeed(folder, "nn/spex_plus.py", **one)
    line = speech.refuse(folder, "nn/spex_plus.py", windows_ms="2,8,16", **one)
    assert "trained with windows of 32, 64, 128 samples" in line
    line = speech.refuse(folder, "nn/spex_plus.py", windows_ms="8,4,16", **one)
    assert "--windows_ms 8,4,16: give three ascending numbers" in line
    alone = own | dict(time_stamp="alone")
    line = speech.refuse(folder, "nn/spex_plus.py", "--dynamic_mixing", **alone)
    assert "--dynamic_mixing needs --corpus_folder" in line
    odd = own | both | dict(batch_size=3, time_stamp="odd")
    assert "--batch_size 3 should be even" in speech.refuse(
        folder, "nn/spex_plus.py", "--dynamic_mixing", "--both_talkers", **odd
    )


def test_extraction_from_a_recording_of_another_rate(folder):
    paths = [triplet_paths(folder / "triplets/tt", name) for name in ("0_1_000000", "1_2_000001")]
    write_pcm16(folder / "recording.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 11025), 11025)
    speech.succeed(
        folder,
        "nn/spex_plus.py",
        *[f"--enrolment={path['enrolment']}" for path in paths],
        is_deploy=1,
        variant="authors",
        resume_model=prefix(folder, "whole", LAST),
        mixture="recording.wav",
        output="out/talker.wav",
        corpus_flags=False,
    )
    samples, rate = soundfile.read(folder / "out/talker.wav")
    assert (len(samples), rate) == (11025, 11025) and np.isfinite(samples).all()


CONFIG = """{
  "preprocessing": {"sr": 16000}, "arch": {"type": "SpexPlus", "args": {"num_classes": 500, "embed_dim": 12, "B": 3}},
  "data": {"train": {"batch_size": 5, "datasets": [{"args": {"part": "train_data"}}]}},
  "optimizer": {"type": "Adam", "args": {"lr": 1e-3}}, "loss": {"type": "MultiLoss", "args": {}},
  "lr_scheduler": {"type": "OneCycleLR", "args": {"epochs": 21, "max_lr": 2e-3, "pct_start": 0.2}},
  "trainer": {"epochs": 21, "grad_norm_clip": 5, "verbosity": 2}
}"""


def test_config_of_the_authors(folder):
    """It was read, not run, and what the command line said won."""
    stored = checkpoint.read_config(str(prefix(folder, "whole", LAST)))
    assert stored["variant"] == "authors" and stored["sample_rate"] == RATE and stored["ratio"] == "si_snr"
    assert {name: stored["model"][name] for name in ("filters", "bottleneck", "units")} == dict(
        filters=8, bottleneck=6, units=10
    )
    assert (folder / "conf.py").exists()


def test_config_of_the_seed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(CONFIG)
    values, left = read_reference_config(str(path))
    sizes = dict(classes=500, n_filters=12, embedding_dim=12, n_blocks=3)
    training = dict(batch_size=5, optimizer="adam", lr_schedule="onecycle", learning_rate=2e-3, epoch=21, clip_norm=5)
    assert values == dict(variant="seed", sample_rate=16000) | sizes | training
    assert left == ["data.train.datasets", "trainer.verbosity"]


def test_config_of_the_authors_in_parity(folder):
    """Its softmax is over the batch, which no mended run would want."""
    given = {name: x for name, x in FLAGS.items() if name not in ("variant", "n_filters", "n_bottle", "n_blocks")}
    given |= dict(time_stamp="softmax", config="other.py", epoch=1, pictures=0)
    for parity, mask in ((True, "batch_softmax"), (False, "softmax")):
        (folder / "other.py").write_text(CONF.replace('"relu"', '"softmax"').replace('"P": 3', '"P": 5'))
        run = given | dict(exp_name=mask, parity=parity)
        speech.succeed(folder, "nn/spex_plus.py", **run)
        model = json.loads((folder / f"exp/{mask}/models/softmax/config.json").read_text())["model"]
        assert (model["mask"], model["taps"]) == (mask, 5)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", CONFIG.replace('"B": 3', '"L": 41'), "windows are of 2.5, 10 and 20 ms"),
        ("config.json", CONFIG.replace("SpexPlus", "BaselineModel"), "'SpexPlus' is needed"),
        ("config.json", CONFIG.replace("MultiLoss", "CELossWrapper"), "only MultiLoss, SISPDRLossWrapper"),
        ("config.json", CONFIG[:-3], "not understood"),
        ("conf.py", CONF.replace('"gLN"', "print()"), "not understood"),
        ("conf.py", CONF.replace('"X": 1', '"X": "a"'), "a number is needed"),
        ("none.py", None, "no such file"),
    ],
)
def test_config_that_is_of_no_use(tmp_path, name, text, said):
    path = tmp_path / name
    if text:
        path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_reference_config(str(path))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda weights: {name: x for name, x in weights.items() if "encoder" in name[:15]}, "is missing in it"),
        (lambda weights: None, "a PyTorch file, but not of one of these"),
        (lambda weights: {name: x * np.nan if name.endswith(".0.bias") else x for name, x in weights.items()}, "NaN"),
    ],
)
def test_torch_checkpoint_that_is_of_no_use(tmp_path, spoil, said):
    torch = pytest.importorskip("torch")
    case = Case(speech.ROOT / "tests/golden/spex_plus/seed_small_short_ref.npz")
    weights = {name: torch.tensor(value) for name, value in case.weights().items()}
    torch.save({"state_dict": spoil(weights)}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=re.escape(said)):
        reader = readers.open_reader(str(tmp_path / "checkpoint.pth"))
        checkpoint.restore_weights(reader, "spex_plus", SpexPlus(**reader.settings()))


def test_torch_checkpoint_of_half_the_bits(tmp_path):
    torch = pytest.importorskip("torch")
    case = Case(speech.ROOT / "tests/golden/spex_plus/seed_small_short_ref.npz")
    weights = {name: torch.tensor(value) for name, value in case.weights().items()}
    halves = {name: x.bfloat16() if x.is_floating_point() else x for name, x in weights.items()}
    torch.save({"state_dict": halves}, tmp_path / "half.pth")
    arrays = torch_checkpoint.tensors(str(tmp_path / "half.pth"))
    for name, value in weights.items():
        np.testing.assert_allclose(arrays[name], value.numpy(), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (dict(n_taps=4), "--n_taps 4: should be odd"),
        (dict(both_talkers=True), "--both_talkers: is of --dynamic_mixing"),
        (dict(is_deploy=1, metrics="foo"), "--metrics foo"),
        (dict(is_deploy=1, mixture="m.wav", enrolment="e.wav", output="x.flac"), "let its name end in .wav"),
        (dict(load="exp/spex_plus/models/whole/spex_plus_model.ckpt_step_1", time_stamp="whole"), "so --load exp/"),
    ],
)
def test_flags_that_do_not_go_together(folder, flags, said):
    base = FLAGS | dict(time_stamp="refused", pictures=0)
    if flags.get("is_deploy"):
        base["resume_model"] = prefix(folder, "whole", LAST)
    assert said in speech.refuse(folder, "nn/spex_plus.py", **base | flags)
    assert not (folder / "exp/spex_plus/models/refused").exists()


def test_a_run_goes_on_after_its_data_got_another_level(folder):
    """The levels are measured on the first batches, which other flags change; those of the run are kept."""
    flags = FLAGS | dict(time_stamp="levels", pictures=0)
    speech.succeed(folder, "nn/spex_plus.py", **flags | dict(epoch=1))
    config = folder / "exp/spex_plus/models/levels/config.json"
    before = json.loads(config.read_text())["levels_db"]
    assert "going on at step 5" in speech.succeed(folder, "nn/spex_plus.py", **flags | dict(gain_db=9, epoch=2))
    assert json.loads(config.read_text())["levels_db"] == before


def test_two_folders_with_one_name_are_told_before_extraction(folder):
    shutil.copytree(folder / "triplets", folder / "second")
    flags = FLAGS | dict(is_deploy=1, resume_model=prefix(folder, "whole", LAST), exp_name="twice")
    line = speech.refuse(folder, "nn/spex_plus.py", **flags | dict(data_folder="triplets,second"))
    assert "second" in line and "has the name of triplets" in line

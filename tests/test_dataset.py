"""The input pipelines: what is in an epoch, in which order, and that it is the same again."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
import speech
import tensorflow as tf
from test_audio import write_as

from feat import wsj0_mix
from feat.base.files import UserError
from feat.batches import common, deep_casa
from feat.corpora import features, find, lists
from feat.corpora.features import generate
from feat.corpora.mixture_tree import MixtureTree
from feat.signals.audio import read_pcm16, write_pcm16
from feat.signals.mixing import draw_sets

SEGMENT = 9  # frames


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    lists = speech.make_corpus(folder, dict(tr=9), seconds=(0.2, 0.5))
    settings = features.FeatureSettings(str(folder / "data"), str(folder / "feat"), fft_size=64, hop_size=32)
    generate(settings, lists, num_workers=1)
    return settings


@pytest.fixture(scope="module")
def utterances(settings):
    root = settings.data_folder.removesuffix("/data")
    with open(f"{root}/lists/mix_2_spk_min_tr_mix", encoding="utf-8") as file:
        return deep_casa.cached_utterances(settings, "tr", file.read().split())


@pytest.fixture(scope="module")
def pool(settings, utterances):
    return deep_casa.source_pool(settings, "tr", utterances.names)


@pytest.fixture(params=["utterances", "pieces", "segments", "mixed"])
def pipeline(request, utterances, pool):
    """(epoch, skip, seed, share) -> batches of 2, or the share's pieces of them."""
    kinds = dict(
        utterances=lambda **where: deep_casa.training_batches(utterances, 2, **where),
        pieces=lambda **where: deep_casa.training_batches(utterances, 2, segment_frames=SEGMENT, **where),
        segments=lambda **where: deep_casa.segment_batches(utterances, SEGMENT, 2, **where),
        mixed=lambda **where: deep_casa.mixed_batches(pool, 2, 4, SEGMENT, **where),
    )
    return lambda epoch, skip=0, seed=5, share=common.Share(): kinds[request.param](
        seed=seed, epoch=epoch, skip=skip, share=share
    )


def test_an_epoch_depends_on_seed_and_epoch_alone(pipeline):
    first = speech.listed(pipeline(epoch=1))
    speech.assert_same_batches(first, speech.listed(pipeline(epoch=1)))
    for other in (speech.listed(pipeline(epoch=2)), speech.listed(pipeline(epoch=1, seed=6))):
        assert len(other) == len(first)
        assert any(a["mixture"].shape != b["mixture"].shape or (a["mixture"] != b["mixture"]).any()
                   for a, b in zip(first, other))  # fmt: skip


def test_skipping_gives_the_tail_of_the_epoch(pipeline):
    whole = speech.listed(pipeline(epoch=3))
    for skip in (1, len(whole) - 1, len(whole)):
        speech.assert_same_batches(speech.listed(pipeline(epoch=3, skip=skip)), whole[skip:])


def test_shares_are_the_pieces_of_the_global_batch(pipeline):
    """Two processes with a device each, and one with two, see what one device sees, padded alike."""
    whole = speech.listed(pipeline(epoch=1, skip=1))
    first, second = (speech.listed(pipeline(epoch=1, skip=1, share=common.Share(2, i, 1))) for i in range(2))
    both = speech.listed(pipeline(epoch=1, skip=1, share=common.Share(2, 0, 2)))
    for a, b in ((first, second), (both[::2], both[1::2])):
        joined = [{key: np.concatenate([x[key], y[key]]) for key in x} for x, y in zip(a, b, strict=True)]
        speech.assert_same_batches(joined, whole)


def test_evaluation_comes_out_even(utterances):
    alone = speech.listed(deep_casa.evaluation_batches(utterances))
    shares = [speech.listed(deep_casa.evaluation_batches(utterances, common.Share(2, i, 1))) for i in range(2)]
    assert [len(some) for some in shares] == [5, 5]
    speech.assert_same_batches([batch for pair in zip(*shares) for batch in pair][:9], alone)
    assert shares[1][-1]["index"] == [-1]


def test_mixture_is_the_sum_and_covers_the_waveforms(pipeline):
    for batch in speech.listed(pipeline(epoch=0)):
        np.testing.assert_allclose(batch["sources"].sum(axis=1), batch["mixture"], atol=2e-3)
        frames = batch["mixture"].shape[1]
        assert batch["waveforms"].shape == (2, 2, (frames - 1) * 32 + 64)
        assert batch["frames"].max() == frames


def test_an_epoch_has_every_utterance_once(utterances):
    order = common.epoch_order(utterances.frames, 2, seed=0, epoch=0)
    assert order.shape == (4, 2) and len(np.unique(order)) == 8
    left_out = {tuple(set(range(9)) - set(common.epoch_order(utterances.frames, 2, 0, e).ravel())) for e in range(20)}
    assert len(left_out) > 1


def test_batches_hold_utterances_of_like_length():
    frames = np.random.default_rng(0).integers(100, 1000, 403)
    order = common.epoch_order(frames, 4, seed=1, epoch=2)
    assert order.shape == (100, 4) and len(np.unique(order)) == 400
    assert np.median(np.ptp(frames[order], axis=1)) < 30
    assert np.ptp(frames[order], axis=1).max() < 200


def test_wavs_give_what_the_files_give(settings, utterances):
    from_wavs = deep_casa.wav_utterances(settings, "tr", utterances.names)
    np.testing.assert_array_equal(from_wavs.frames, utterances.frames)
    for make in (
        lambda some: deep_casa.training_batches(some, 2, 0, 0),
        lambda some: deep_casa.training_batches(some, 2, 0, 0, segment_frames=5),
        lambda some: deep_casa.segment_batches(some, SEGMENT, 2, 0, 0),
        lambda some: deep_casa.evaluation_batches(some),
    ):
        for cached, fresh in zip(speech.listed(make(utterances)), speech.listed(make(from_wavs)), strict=True):
            for key, value in cached.items():
                np.testing.assert_allclose(fresh[key], value, atol=1e-5, err_msg=key)
        # Batches of the same known dimensions too, which losses over talkers need.
        assert make(from_wavs).element_spec == make(utterances).element_spec


@pytest.mark.parametrize("kind", ["extensible", "chunks", "streamed", "RIFX", "RF64", "FLAC"])
@pytest.mark.parametrize("sources", [["s1", "s2", "mix"], ["s2"]])
def test_wavs_of_all_kinds_give_the_same(settings, utterances, pool, tmp_path, kind, sources):
    """Whatever feat_gen.py reads, on the fly too, to the last bit."""
    shutil.copytree(settings.data_folder, tmp_path / "data")
    for source in sources:
        for path in (tmp_path / "data").rglob(f"{source}/*.wav"):
            write_as(path, read_pcm16(path), kind)
    changed = dataclasses.replace(settings, data_folder=str(tmp_path / "data"))
    deep_casa.cached_utterances(changed, "tr", utterances.names)
    plain, fresh = (deep_casa.wav_utterances(some, "tr", utterances.names) for some in (settings, changed))
    ours, theirs = (deep_casa.training_batches(some, 2, 0, 0, segment_frames=7) for some in (fresh, plain))
    assert ours.element_spec == theirs.element_spec
    speech.assert_same_batches(speech.listed(ours), speech.listed(theirs))
    ours = deep_casa.mixed_batches(deep_casa.source_pool(changed, "tr", utterances.names), 2, 4, 20, 0, 0)
    speech.assert_same_batches(speech.listed(ours), speech.listed(deep_casa.mixed_batches(pool, 2, 4, 20, 0, 0)))


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT"])
def test_what_feat_gen_refuses_is_refused_before_training(settings, utterances, tmp_path, subtype):
    shutil.copytree(settings.data_folder, tmp_path / "data")
    changed = dataclasses.replace(settings, data_folder=str(tmp_path / "data"))
    pool = deep_casa.source_pool(changed, "tr", utterances.names)
    path = changed.wav_paths("tr", utterances.names[3])[0]
    soundfile.write(path, read_pcm16(path) / 32768, 8000, subtype)
    for refused in (
        lambda: features.read_mixture(changed, "tr", utterances.names[3]),
        lambda: deep_casa.wav_utterances(changed, "tr", utterances.names),
        lambda: deep_casa.source_pool(changed, "tr", utterances.names),
        pool.check,
    ):
        with pytest.raises(UserError, match=f"{path}: samples are {subtype}, 16-bit PCM is needed"):
            refused()


@pytest.mark.parametrize("kind", ["plain", "extensible", "FLAC"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no audio " * len(data)])
def test_a_wav_that_went_bad_is_named(settings, utterances, tmp_path, kind, damage):
    shutil.copytree(settings.data_folder, tmp_path / "data")
    changed = dataclasses.replace(settings, data_folder=str(tmp_path / "data"))
    path = pathlib.Path(changed.wav_paths("tr", utterances.names[3])[1])
    write_as(path, read_pcm16(path), kind)
    fresh = deep_casa.wav_utterances(changed, "tr", utterances.names)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=str(path)):
        list(deep_casa.evaluate(fresh))
    with pytest.raises(UserError, match=str(path)):
        deep_casa.wav_utterances(changed, "tr", utterances.names)


def test_segments_are_all_frames_in_pieces(utterances):
    count = deep_casa.segment_count(utterances, SEGMENT)
    assert count == sum(-(-frames // SEGMENT) for frames in utterances.frames)
    batches = speech.listed(deep_casa.segment_batches(utterances, SEGMENT, 1, 0, 0))
    assert len(batches) == count
    whole = {int(b["index"][0]): b["mixture"][0] for b in speech.listed(deep_casa.evaluation_batches(utterances))}
    pieces = {}
    for batch in batches:
        assert batch["frames"] == [SEGMENT]
        pieces.setdefault(int(batch["index"][0]), []).append(batch["mixture"][0])
    for line, some in pieces.items():
        padded = np.pad(whole[line], [(0, -len(whole[line]) % SEGMENT), (0, 0), (0, 0)])
        expected = padded.reshape(-1, SEGMENT, 33, 2)
        assert sorted(x.tobytes() for x in expected) == sorted(x.tobytes() for x in some)


def test_dynamic_mixing_pairs_different_talkers(pool, tmp_path):
    """Wavs are replaced by the number of the talker, so that a batch says who is in it."""
    paths = [str(tmp_path / f"{i}.wav") for i in range(len(pool))]
    for path, talker in zip(paths, pool.talkers):
        write_pcm16(path, np.full(5000, (talker + 1) / 8), 8000)
    numbers = dataclasses.replace(pool, paths=paths, samples=np.full(len(pool), 5000))
    seen = set()
    for epoch in range(3):
        for batch in speech.listed(deep_casa.mixed_batches(numbers, 4, 5, SEGMENT, 0, epoch, gain_db=0.0)):
            # Utterances are put at equal power, here by their true levels.
            values = batch["waveforms"][..., 0] / batch["waveforms"][:, :1, 0]
            seen |= set(np.round(values[:, 1], 4))
    level = {t: pool.levels[pool.talkers == t] for t in range(4)}
    possible = {
        np.round((b + 1) / lb * la / (a + 1), 4)
        for a in range(4) for b in range(4) if a != b for la in level[a] for lb in level[b]
    }  # fmt: skip
    assert len(seen) > 20 and all(min(abs(x - p) for p in possible) < 2e-3 for x in seen)


def test_dynamic_mixing_levels(pool):
    for batch in speech.listed(deep_casa.mixed_batches(pool, 4, 3, 40, 0, 0)):
        peaks = np.abs(np.concatenate([batch["waveforms"], batch["waveforms"].sum(1, keepdims=True)], 1)).max((1, 2))
        np.testing.assert_allclose(peaks, 0.9, atol=1e-4)


def test_dynamic_mixing_of_three(tmp_path):
    lists = speech.make_corpus(tmp_path, dict(tr=4), talkers=3)
    settings = features.FeatureSettings(str(tmp_path / "data"), "", talkers=3, fft_size=64, hop_size=32)
    pool = deep_casa.source_pool(settings, "tr", lists["tr"])
    (batch,) = speech.listed(deep_casa.mixed_batches(pool, 2, 1, SEGMENT, 0, 0))
    assert batch["sources"].shape == (2, 3, SEGMENT, 33, 2) and np.isfinite(batch["mixture"]).all()


def test_dynamic_mixing_leaves_silent_utterances_out(tmp_path):
    lists = speech.make_corpus(tmp_path, dict(tr=3), seconds=(0.5, 0.5))
    speech.write_mixture(tmp_path, "tr", lists["tr"][0], [np.zeros(4000, np.float32), speech.voice(1, 0, 0.5)])
    settings = features.FeatureSettings(str(tmp_path / "data"), "", fft_size=64, hop_size=32)
    assert len(deep_casa.source_pool(settings, "tr", lists["tr"])) == 5
    with pytest.raises(UserError, match="1 talker"):
        deep_casa.source_pool(settings, "tr", ["a-1_0_a-2_0"][:0] or lists["tr"][:1])


@pytest.fixture
def readers(tmp_path):
    """Mixtures drawn from three talkers whose files have the same names; the samples of one are all alike."""
    for talker in range(3):
        for k, name in enumerate(("sa1", "sa2", "sx9")):
            path = tmp_path / "in" / "tr" / f"talker_{talker}" / "deep" / f"{name}.wav"
            write_pcm16(path, np.tile([0.1, -0.1], 2000) * (1 + 3 * talker + k) / 9, 8000)
    utterances = find.find_utterances(tmp_path / "in", 0, {})
    lines = draw_sets(utterances, {"tr": 30}, 2, 0)
    tree = MixtureTree(str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "out" / "lists"))
    wsj0_mix.make_mixtures(tree, lines, {"sa1": 1.0, "sa2": 1.0, "sx9": 1.0}, num_workers=1)
    return features.FeatureSettings(str(tmp_path / "out"), "", fft_size=64, hop_size=32), lines["tr"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_talkers_who_share_file_names(readers, tmp_path, elsewhere):
    settings, lines = readers
    folder = str(tmp_path / "out" / "lists")
    if elsewhere:  # a shorter list of the user's own
        lists.write_name_lists(tmp_path / "some", "tr", lines)
        for path in (tmp_path / "some").glob("*_[12]"):
            path.unlink()
        folder = str(tmp_path / "some")
    names = lists.read_names(folder, "tr")
    pool = deep_casa.source_pool(settings, "tr", names, folder)
    assert sorted(pool.talkers) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    talker_of = {}
    for line in lines:
        for source, path in zip(settings.wav_paths("tr", line.name), line.paths):
            talker_of[source] = path.split("/")[1]
    assert [f"talker_{number}" for number in pool.talkers] == [talker_of[path] for path in pool.paths]


def test_talkers_of_lists_without_paths_are_those_of_the_names(readers, tmp_path, capsys):
    settings, lines = readers
    names = [line.name for line in lines]
    shutil.rmtree(tmp_path / "out" / "lists")
    assert len(deep_casa.source_pool(settings, "tr", names)) == 3
    assert "warning: " in capsys.readouterr().out


@pytest.mark.parametrize("kept", ["mix_2_spk_min_tr_*", "mix_2_spk_tr.txt"])
def test_the_pool_of_wsj0_is_that_of_its_names(settings, tmp_path, capsys, kept):
    spoken = [("01t", "01to030v"), ("20g", "20go010e"), ("02e", "02eo0306"), ("01t", "01tc0201"), ("20g", "20ga010m")]
    spoken = [f"wsj0/si_tr_s/{talker}/{utterance}.wav" for talker, utterance in spoken]
    pairs = [(0, 1), (2, 3), (1, 2), (4, 0), (2, 4), (3, 4)]
    lines = [lists.MixtureLine((spoken[a], spoken[b]), ("0.76421", "-0.76421")) for a, b in pairs]
    for i, line in enumerate(lines):
        speech.write_mixture(tmp_path, "tr", line.name, [speech.voice(k, i, 0.1) for k in range(2)])
    changed = dataclasses.replace(settings, data_folder=str(tmp_path / "data"))
    names = [line.name for line in lines]
    by_names = deep_casa.source_pool(changed, "tr", names)
    lists.write_name_lists(tmp_path / "all", "tr", lines)
    lists.write_mixture_lines(tmp_path / "all", "tr", lines)
    (tmp_path / "lists").mkdir()
    for path in (tmp_path / "all").glob(kept):
        shutil.copy(path, tmp_path / "lists")
    by_lists = deep_casa.source_pool(changed, "tr", names, str(tmp_path / "lists"))
    assert by_lists.paths == by_names.paths and len(by_names) == 5
    for key in ("talkers", "levels", "samples", "offsets"):
        np.testing.assert_array_equal(getattr(by_lists, key), getattr(by_names, key))
    assert capsys.readouterr().out == ""


def test_one_tracing_for_all_lengths(pipeline):
    batches = pipeline(epoch=0)
    traced = []

    @tf.function(input_signature=[batches.element_spec])
    def frames(batch):
        traced.append(1)
        return tf.shape(batch["mixture"])[1]

    lengths = {int(frames(batch)) for epoch in range(3) for batch in pipeline(epoch=epoch)}
    assert len(traced) == 1 and lengths


def test_lengths_are_free_in_the_pipelines_of_whole_utterances(utterances):
    for batches in (deep_casa.training_batches(utterances, 2, 0, 0), deep_casa.evaluation_batches(utterances)):
        free = common.free_lengths(batches.element_spec)
        for batch in batches:
            assert all(free[key].is_compatible_with(value) for key, value in batch.items())
        assert batches.element_spec["mixture"].shape.as_list()[1:] == [None, 33, 2]
        assert len({batch["mixture"].shape[1] for batch in batches}) > 1


def test_a_batch_that_cannot_be_read_names_the_file():
    broken = tf.data.Dataset.from_tensors("nowhere.npy").map(common.read_npy)

    def check():
        raise UserError("nowhere.npy: missing")

    with pytest.raises(UserError, match="nowhere.npy: missing"):
        list(common.checked(broken, check))
    with pytest.raises(UserError, match="cannot be read.*nowhere.npy"):
        list(common.checked(broken, lambda: None))
    assert list(common.checked(tf.data.Dataset.range(3), check)) == [0, 1, 2]


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 1, 6)])
def test_read_npy(tmp_path, shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    path = str(tmp_path / "a.npy")
    np.save(path, array)
    np.testing.assert_array_equal(common.read_npy(path), array)
    with open(path, "r+b") as file:
        file.truncate(128 + 4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        common.read_npy(path)

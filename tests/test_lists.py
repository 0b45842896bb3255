"""Lists of mixtures: reading what was published, writing what reads back, refusing what is broken."""

import pytest

from feat.base.files import UserError
from feat.corpora import lists
from feat.corpora.lists import MixtureLine

PUBLISHED = "wsj0/si_tr_s/01t/01to030v.wav 0.76421 wsj0/si_tr_s/20g/20ga010m.wav -0.76421 \n"


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder


def refusal(call, *arguments):
    with pytest.raises(UserError) as refused:
        call(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_published_line(tmp_path):
    folder = write(tmp_path, "mix_2_spk_tr.txt", PUBLISHED)
    (line,) = lists.read_mixture_lines(folder, "tr")
    assert line.paths == ("wsj0/si_tr_s/01t/01to030v.wav", "wsj0/si_tr_s/20g/20ga010m.wav")
    assert line.gains_db == ("0.76421", "-0.76421")
    assert line.name == "01to030v_0.76421_20ga010m_-0.76421"


def test_names_of_tiny_gains_and_third_talkers():
    line = MixtureLine(("a/x.wav", "b/y.wav", "c/z.wav"), ("6.9829e-05", "-6.9829e-05", "0"))
    assert line.name == "x_6.9829e-05_y_-6.9829e-05_z_0"


def test_written_lists_read_back(tmp_path):
    lines = [
        MixtureLine(("a/x.wav", "b/y.wav"), ("1.5", "-1.5")),
        MixtureLine(("b/y.wav", "a/z.wav"), ("-0.25", "0.25")),
    ]
    lists.write_mixture_lines(tmp_path, "cv", lines)
    lists.write_name_lists(tmp_path, "cv", lines)
    assert lists.read_mixture_lines(tmp_path, "cv") == lines
    assert lists.read_names(tmp_path, "cv") == ["x_1.5_y_-1.5", "y_-0.25_z_0.25"]
    assert (tmp_path / "mix_2_spk_min_cv_mix").read_text() == "x_1.5_y_-1.5\ny_-0.25_z_0.25\n"
    assert (tmp_path / "mix_2_spk_min_cv_1").read_text() == "a/x.wav\nb/y.wav\n"
    assert (tmp_path / "mix_2_spk_min_cv_2").read_text() == "b/y.wav\na/z.wav\n"


def test_line_ends_of_other_systems_and_blank_lines(tmp_path):
    (tmp_path / "mix_3_spk_max_tt_mix").write_bytes(b"a_1_b_-1\r\n\r\nc_1_d_-1")
    assert lists.read_names(tmp_path, "tt", talkers=3, mode="max") == ["a_1_b_-1", "c_1_d_-1"]


def test_missing_and_empty_lists_are_named(tmp_path):
    assert "mix_2_spk_min_tr_mix: no such list" in refusal(lists.read_names, tmp_path, "tr")
    assert "mix_2_spk_tr.txt: no such list" in refusal(lists.read_mixture_lines, tmp_path, "tr")
    write(tmp_path, "mix_2_spk_min_tr_mix", "\n\n")
    assert "empty" in refusal(lists.read_names, tmp_path, "tr")


@pytest.mark.parametrize("bad", ["a.wav", "folder/a", "two words", "a\tb"])
def test_a_line_that_is_no_bare_name(tmp_path, bad):
    write(tmp_path, "mix_2_spk_min_tr_mix", f"good\n{bad}\n")
    assert "line 2" in refusal(lists.read_names, tmp_path, "tr")


def test_a_name_that_is_there_twice(tmp_path):
    write(tmp_path, "mix_2_spk_min_tr_mix", "a\nb\na\n")
    message = refusal(lists.read_names, tmp_path, "tr")
    assert "line 3" in message
    assert "line 1" in message


@pytest.mark.parametrize(
    "bad", ["a.wav 1.0 b.wav", "a.wav 1 b.wav -1 c.wav 0", "a.wav loud b.wav -1", "a.wav nan b.wav 1"]
)
def test_a_malformed_recipe(tmp_path, bad):
    write(tmp_path, "mix_2_spk_tr.txt", PUBLISHED + bad + "\n")
    assert "line 2" in refusal(lists.read_mixture_lines, tmp_path, "tr")


def test_a_binary_file_is_no_list(tmp_path):
    (tmp_path / "mix_2_spk_min_tr_mix").write_bytes(b"\xff\xfe\x80abc")
    assert "not a text file" in refusal(lists.read_names, tmp_path, "tr")


def test_lists_of_windows_editors(tmp_path):
    """A byte order mark at the start of a list is no part of the first name."""
    (tmp_path / "mix_2_spk_min_tr_mix").write_bytes(b"\xef\xbb\xbfa_1_b_-1\r\nc_1_d_-1\r\n")
    (tmp_path / "mix_2_spk_tr.txt").write_bytes(b"\xef\xbb\xbf" + PUBLISHED.encode())
    assert lists.read_names(tmp_path, "tr") == ["a_1_b_-1", "c_1_d_-1"]
    assert lists.read_mixture_lines(tmp_path, "tr")[0].paths[0] == "wsj0/si_tr_s/01t/01to030v.wav"


def test_where_the_wavs_of_a_name_lie():
    paths = lists.mixture_paths("data", "tr", "x_1_y_-1")
    assert paths == {
        "s1": "data/2speakers/wav8k/min/tr/s1/x_1_y_-1.wav",
        "s2": "data/2speakers/wav8k/min/tr/s2/x_1_y_-1.wav",
        "mix": "data/2speakers/wav8k/min/tr/mix/x_1_y_-1.wav",
    }
    three = lists.mixture_paths("data", "tt", "n", talkers=3, sample_rate=16000, mode="max")
    assert list(three) == ["s1", "s2", "s3", "mix"]
    assert three["s3"] == "data/3speakers/wav16k/max/tt/s3/n.wav"


def test_talkers_are_read_off_the_names():
    assert lists.parts_of_name("01to030v_0.76421_20ga010m_-0.76421", 2) == ["01to030v", "20ga010m"]
    assert lists.parts_of_name("a_1_b_-2.5e-05_c_0", 3) == ["a", "b", "c"]
    assert lists.parts_of_name("m01_00_0.5_f02_03_-0.5", 2) == ["m01_00", "f02_03"]
    assert lists.parts_of_name("m01_00_1_f02_03_-1.5_m03_7_0.25", 3) == ["m01_00", "f02_03", "m03_7"]
    assert [lists.talker_of(x) for x in ("01to030v", "1089-134686-0000", "t3-tr1")] == ["01t", "1089", "t3"]
    with pytest.raises(UserError, match="leave --dynamic_mixing out"):
        lists.parts_of_name("no gains here", 2)


def test_source_paths_are_found_by_the_name_of_the_mixture(tmp_path):
    lines = [
        MixtureLine(("tr/x/sa1.wav", "tr/y/sa1.wav"), ("1.5", "-1.5")),
        MixtureLine(("tr/y/sa2.wav", "tr/z_1/sa1.wav"), ("-6.9829e-05", "6.9829e-05")),
    ]
    assert lists.read_source_paths(tmp_path, "tr") == {}
    lists.write_name_lists(tmp_path, "tr", lines)
    expected = {line.name: list(line.paths) for line in lines}
    assert lists.read_source_paths(tmp_path, "tr") == expected
    # Lists that do not go together line by line say nothing; what the mixtures were made of does.
    names = tmp_path / "mix_2_spk_min_tr_mix"
    for text in (lines[1].name + "\n", f"{lines[1].name}\n{lines[0].name}\n"):
        names.write_text(text)
        (tmp_path / "mix_2_spk_tr.txt").unlink(missing_ok=True)
        assert lists.read_source_paths(tmp_path, "tr") == {}
        lists.write_mixture_lines(tmp_path, "tr", lines)
        assert lists.read_source_paths(tmp_path, "tr") == expected


@pytest.mark.parametrize(
    "rows, folders",
    [
        ([["wsj0/si_tr_s/01t/a.wav", "wsj0/si_tr_s/20g/b.wav"], ["wsj0/si_et_05/440/a.wav", "wsj0/si_dt_05/050/b"]], 3),
        ([["tr/x/sa1.wav", "tr/y/deep/sa1.wav"]], 2),
        ([["103/1240/a.flac", "104/1240/a.flac"], ["103/1241/b.flac", "105/7/b.flac"]], 1),
        ([["/data/DR1/x/a.wav", "/data/DR1/y/a.wav"], ["/data/DR1/x/a.wav", "/data/DR2/z/a.wav"]], 4),
    ],
)
def test_talkers_are_read_off_the_folders(rows, folders):
    expected = {path: "/".join(path.split("/")[:folders]) for row in rows for path in row}
    assert lists.talkers_of_paths(rows) == expected


@pytest.mark.parametrize("rows", [[], [["a.wav", "b.wav"]], [["x/a.wav", "x/b.wav"], ["x/a.wav", "y/b.wav"]]])
def test_folders_that_tell_no_talkers(rows):
    assert lists.talkers_of_paths(rows) is None

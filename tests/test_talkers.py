"""Who talks in a mixture, and the tables that say of whom whether a man or a woman."""

import pytest

from feat.base.files import UserError
from feat.corpora.talkers import find_genders, gender_labels, read_genders
from nn.scoring.score_groups import label_talkers


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "SPEAKERS.TXT",
            ";ID  |SEX| SUBSET |MINUTES| NAME\n14  | F | tr | 25.03 | M Smith\n1034 | M | tr | 9 | F. Jones\n",
        ),
        ("talkers.tsv", "talker\tset\tsex\tdialect\twords_per_minute\n14\ttr\tf\ten\t140\n1034\ttt\tm\ten\t150\n"),
        ("spk2gender", "14 f\n1034 m\n"),
    ],
)
def test_tables_of_talkers(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    (tmp_path / "wav" / "tt").mkdir(parents=True)
    assert read_genders(find_genders(tmp_path / "wav" / "tt")) == {"14": "female", "1034": "male"}


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "a.txt").write_text("nothing\n")
    with pytest.raises(UserError, match="a.txt: no line has a talker, then M or F"):
        read_genders(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no table can be read"):
        read_genders(tmp_path / "b.txt")


GENDERS = {"14": "female", "1034": "male", "01g": "male", "20a": "female", "Jo-Doe": "male", "Al-Doe": "female"}


@pytest.mark.parametrize(
    ("name", "talkers", "expected"),
    [
        ("14_1034_000007_0", 1, ["female against male"]),
        ("14_7_000007", 1, ["female against unknown"]),
        ("Jo-Doe_Al-Doe_000007_0", 1, ["male against female"]),
        ("01gc020v_0.61971_20aa010f_-0.61971_20ac021c", 1, ["female against male"]),
        ("01gc020v_0.61971_20aa010f_-0.61971", 2, ["male against female", "female against male"]),
        (
            "14-1_0_1034-2_0.5_14-3_1",
            3,
            ["female against female and male", "male against female and female", "female against female and male"],
        ),
    ],
)
def test_who_talks_against_whom(name, talkers, expected):
    assert gender_labels(name, talkers, GENDERS) == expected


NAMES = ["14_1034_000007_0", "1034_14_000008"]


def test_a_table_of_mixtures_has_their_groups(tmp_path):
    """The spk2gender of gemengtju/SpEx_Plus, whose groups may be anything."""
    (tmp_path / "spk2gender").write_text(f"{NAMES[0]} MF\n{NAMES[1]} MM\n")
    genders = read_genders(tmp_path / "spk2gender")
    assert label_talkers(NAMES, 1, genders=genders) == {"genders": [["MF"], ["MM"]]}
    others = ["a", "b_0.5_c_-0.5"]  # names that tell no talkers
    (tmp_path / "spk2gender").write_text(f"{others[0]} M\n")
    genders = read_genders(tmp_path / "spk2gender")
    assert label_talkers(others, 2, genders=genders) == {"genders": [["M", "M"], ["unknown", "unknown"]]}


def test_a_table_of_other_talkers_is_said_to_be_one(tmp_path, capsys):
    (tmp_path / "other").write_text("p225 F\np226 M\n")
    genders = read_genders(tmp_path / "other")
    for _ in range(2):
        assert label_talkers(NAMES, 1, genders=genders) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'other'}: names none of the talkers, such as 14")
    (tmp_path / "text").write_text("nothing here\n")
    with pytest.raises(UserError, match="text: no line has a talker, then M or F, or a mixture such as 14_1034"):
        label_talkers(NAMES, 1, genders=read_genders(tmp_path / "text"))

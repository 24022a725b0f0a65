"""From options, files and presets to a RunConfig."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

import gpu_cluster
from gpu_cluster import api
from gpu_cluster.cli.commands import app
from gpu_cluster.config import (
    COMMANDS,
    CompareConfig,
    EmbedJobConfig,
    JobConfig,
    PredictConfig,
    RunConfig,
    parse_k_range,
)
from gpu_cluster.errors import ConfigError
from gpu_cluster.options import INTERNAL, build_config, command_line, options_of
from tests.helpers import called


def written(folder: Path, text: str, name: str = "options.toml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_without_anything_every_option_has_its_default():
    assert build_config(RunConfig) == RunConfig()


def test_the_preset_goes_over_the_defaults():
    config = build_config(RunConfig, preset="notebook")
    assert (config.seed, config.embed.resize, config.reduce.scaling, config.sweep.k) == (42, "nearest", "minmax", 8)


def test_what_a_preset_does_not_name_keeps_its_default():
    config = build_config(RunConfig, preset="notebook")
    assert config.cluster == RunConfig().cluster
    assert config.embed.batch_size == RunConfig().embed.batch_size


def test_the_file_goes_over_the_preset(tmp_path):
    config = build_config(RunConfig, written(tmp_path, "[sweep]\nk = 5\n"), preset="notebook")
    assert config.sweep.k == 5
    assert config.reduce.scaling == "minmax"


def test_the_preset_of_a_file_counts(tmp_path):
    config = build_config(RunConfig, written(tmp_path, 'preset = "notebook"\n[sweep]\nk = 5\n'))
    assert (config.preset, config.sweep.k, config.reduce.pca) == ("notebook", 5, 2)


def test_a_flag_goes_over_the_file(tmp_path):
    config = build_config(RunConfig, written(tmp_path, "[sweep]\nk = 5\n[embed]\nbatch_size = 3\n"), k=7)
    assert (config.sweep.k, config.embed.batch_size) == (7, 3)


def test_a_flag_goes_over_the_preset():
    assert build_config(RunConfig, preset="notebook", k=3).sweep.k == 3


def test_the_preset_of_the_flags_goes_over_that_of_the_file(tmp_path):
    config = build_config(RunConfig, written(tmp_path, 'preset = "notebook"\n'), preset="default")
    assert config == RunConfig()


@pytest.mark.parametrize("model", [RunConfig, CompareConfig])
def test_a_record_that_names_no_engine_and_decoding_has_the_earlier_ones_and_this_is_said(tmp_path, caplog, model):
    file = written(tmp_path, '{"config": {"preset": "default", "compare": {}}}', "run.json")
    embed = build_config(model, file).embed
    assert (embed.engine, embed.decoding) == ("tensorflow", 2)
    assert "no --engine; tensorflow is used" in caplog.text
    assert "no --decoding; 2 is used" in caplog.text
    assert build_config(model, file, engine="auto").embed.engine == "auto"


def test_options_in_a_file_have_the_defaults_of_this_version_and_nothing_is_said(tmp_path, caplog):
    file = written(tmp_path, "[sweep]\nk = 5\n")
    assert build_config(RunConfig, file).embed == RunConfig().embed
    assert build_config(RunConfig, written(tmp_path, "", "b.toml"), preset="notebook").embed.engine == "tensorflow"
    assert caplog.text == ""


def test_ncnn_on_a_gpu_is_an_error_before_a_gpu_is_looked_for():
    with pytest.raises(ConfigError, match="--engine ncnn computes on the CPU only; found --device gpu"):
        build_config(RunConfig, engine="ncnn", device="gpu")


def test_an_option_that_is_none_was_not_given(tmp_path):
    assert build_config(RunConfig, written(tmp_path, "[sweep]\nk = 5\n"), k=None).sweep.k == 5


def test_a_flag_that_is_false_was_given(tmp_path):
    assert (
        build_config(RunConfig, written(tmp_path, "[reduce]\nnormalize = true\n"), normalize=False).reduce.normalize
        is False
    )


def test_every_section_can_be_a_table_of_a_file(tmp_path):
    text = """
        seed = 7
        max_bad_fraction = 0.25
        [input]
        images = ["pictures"]
        labels_from_folders = true
        [embed]
        fit = "stretch"
        [reduce]
        pca = "none"
        [sweep]
        k_range = "3:9:2"
        [cluster]
        tol = 0
        [score]
        holdout = 0.2
        [report]
        thumbnails = 12
    """
    config = build_config(RunConfig, written(tmp_path, text))
    assert (config.seed, config.max_bad_fraction) == (7, 0.25)
    assert config.input.images == (Path.cwd() / "pictures",)
    assert config.input.labels_from_folders is True
    assert (config.embed.fit, config.reduce.pca, config.sweep.k_range) == ("stretch", "none", "3:9:2")
    assert (config.cluster.tol, config.score.holdout, config.report.thumbnails) == (0, 0.2, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sweep]\nnum_clusters = 5\n", r"unknown config key 'num_clusters' in \[sweep\]"),
        ("[nonsense]\nk = 5\n", r"unknown config key 'nonsense'"),
        ("k = 5\n", r"config key 'k' .* is in the wrong place; it belongs in the table \[sweep\]"),
        ("[cluster]\nk = 5\n", r"config key 'k' in \[cluster\] .* it belongs in the table \[sweep\]"),
        ("[sweep]\nseed = 5\n", r"config key 'seed' in \[sweep\] .* it belongs above all tables"),
        ('[sweep]\nkrange = "2:5"\n', r"unknown config key 'krange' in \[sweep\] .*\(did you mean 'k_range'\?\)"),
        ("[sweeep]\nk = 5\n", r"unknown config key 'sweeep' .*\(did you mean 'sweep'\?\)"),
        ('preset = "notebok"\n', r"--preset: .*found 'notebok' \(did you mean 'notebook'\?\)"),
        ("[sweep]\nk_range = 5\n", r"--k-range: .*A:B.*found 5"),
        ("sweep = 5\n", r"sweep: expected a table of options; found 5"),
        ("[input]\nimages = 5\n", r"IMAGES: expected several values, in a list; found 5"),
        ("[sweep]\nk = 0\n", r"--k: .*found 0"),
        ('[sweep]\nk = "many"\n', r"--k: .*found 'many'"),
        ('[sweep]\nk_range = "9:2"\n', r"--k-range: .*upwards.*found '9:2'"),
        ('preset = "fast"\n', r"--preset: .*'default' or 'notebook'.*found 'fast'"),
        ("preset = 5\n", r"--preset: .*found 5"),
        ("sweep = 5\n", r"sweep: .*found 5"),
        ("[score]\nholdout = 1.0\n", r"--holdout: .*less than 1.*found 1.0"),
        ('[reduce]\npca = "all"\n', r"--pca: .*found 'all'"),
        ("[sweep\n", r"not valid"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_what_is_wrong_and_the_file(tmp_path, text, message):
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(RunConfig, file)
    assert "options.toml" in str(caught.value)


def test_an_unknown_option_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown option 'n_clusters' of run; known are .*\bk_range\b"):
        build_config(RunConfig, n_clusters=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 31}, r"--image-size: .*32.*found 31"),
        ({"batch_size": 0}, r"--batch-size: .*found 0"),
        ({"seed": -1}, r"--seed: .*found -1"),
        ({"seed": 2**32}, r"--seed: .*found 4294967296"),
        ({"max_bad_fraction": 1.5}, r"--max-bad-fraction: .*found 1.5"),
        ({"n_init": 0}, r"--n-init: .*found 0"),
        ({"resize": "cubic"}, r"--resize: .*'bilinear' or 'nearest'.*found 'cubic'"),
        ({"labels": "a.csv", "labels_from_folders": True}, r"labels come from a CSV or from the folders, not both"),
    ],
)
def test_an_option_out_of_its_range_is_an_error_that_names_it_and_what_was_found(options, message):
    with pytest.raises(ConfigError, match=message):
        build_config(RunConfig, **options)


DEEP, DIGITS = "expected at most 32 levels", "a number of thousands of digits"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "seed = " + "[" * 100_000, DEEP),
        ("a.toml", "seed = " + "{a=" * 2_000 + "1" + "}" * 2_000, DEEP),
        ("a.toml", ".".join("a" * 2_000) + " = 1", DEEP),
        ("a.toml", "seed = " + "9" * 10_000, DIGITS),
        ("a.toml", "seed = 0x" + "f" * 10_000, DIGITS),
        ("a.toml", "#" * 2_000_000, "expected at most 1,048,576 bytes"),
        ("a.toml", 'preset = "' + "a" * 100_000 + '"', r"aaa\.\.\. \(100,002 characters\)"),
        ("a.json", '{"config": ' + "[" * 100_000, DEEP),
        ("a.json", '{"config": ' + '{"a":' * 900 + "1" + "}" * 901, DEEP),
        ("a.json", '{"config": {"seed": ' + "9" * 10_000 + "}}", DIGITS),
        ("a.json", '{"config": {"\\ud800": 1}}', "expected a text in Unicode"),
    ],
    ids=lambda value: value[:30],
)
def test_a_file_without_measure_is_a_short_error_that_names_it(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_config(RunConfig, written(tmp_path, text, name))
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1_000


def test_a_config_without_an_end_is_an_error():
    with pytest.raises(ConfigError, match="zero is too large: expected at most 1,048,576 bytes"):
        build_config(RunConfig, "/dev/zero")


def test_a_config_may_come_from_a_pipe():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        stream.write("seed = 7")
    try:
        assert build_config(RunConfig, f"/dev/fd/{reading}").seed == 7
    finally:
        os.close(reading)


def test_a_number_that_python_cannot_write_is_an_error():
    with pytest.raises(ConfigError, match="--seed: expected a smaller number"):
        build_config(RunConfig, seed=10**5_000)


def test_a_config_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the config .*absent\.toml.*No such file"):
        build_config(RunConfig, tmp_path / "absent.toml")


def test_a_json_file_that_is_no_run_record_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"is no run\.json"):
        build_config(RunConfig, written(tmp_path, "[1, 2]", "other.json"))


@pytest.mark.parametrize(
    ("text", "ks"),
    [
        ("2:5", (2, 3, 4, 5)),
        ("4:4", (4,)),
        ("1:2", (1, 2)),
        ("2:10:4", (2, 6, 10)),
        ("2:9:4", (2, 6)),
        ("2:3:10", (2,)),
    ],
)
def test_a_range_of_k_includes_both_ends_that_its_step_meets(text, ks):
    assert parse_k_range(text) == ks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("15:2", "upwards, as in 2:15"),
        ("0:5", "starts at 1"),
        ("2:9:0", "step"),
        ("a:b", "A:B"),
        ("5", "A:B"),
        ("2:", "A:B"),
        ("-2:5", "A:B"),
        ("2.0:5", "A:B"),
        ("1:2:3:4", "A:B"),
        ("", "A:B"),
    ],
)
def test_a_wrong_range_of_k_is_an_error_that_shows_it(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_k_range(text)
    assert repr(text) in str(caught.value)


def test_a_range_of_k_too_long_to_hold_is_an_error_and_not_a_full_memory():
    # As a tuple it would take 8 million GB: more than a process can address, so the test itself is harmless.
    with pytest.raises(ConfigError, match=r"--k-range: .*at most 100,000 numbers; found '1:1000000000000000'"):
        build_config(RunConfig, k_range="1:1000000000000000")


@pytest.mark.parametrize("name", ["images", "labels", "weights", "out"])
def test_paths_become_absolute(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {name: ("here",) if name == "images" else "here"}
    config = build_config(RunConfig, **options)
    found = options_of(RunConfig)[name].of(config)
    assert found in (tmp_path / "here", (tmp_path / "here",))


@pytest.mark.parametrize("name", ["images", "labels", "weights", "out"])
def test_an_empty_path_is_not_the_current_folder(name):
    options: dict[str, Any] = {name: ("",) if name == "images" else ""}
    with pytest.raises(ConfigError, match="a path is empty; found ''"):
        build_config(RunConfig, **options)
    with pytest.raises(ConfigError, match="a path is empty"):
        gpu_cluster.run(**options)


def test_a_tilde_is_the_home_folder():
    assert build_config(RunConfig, labels="~/labels.csv").input.labels == Path.home() / "labels.csv"


def test_a_name_that_begins_with_a_tilde_and_no_user_has_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build_config(RunConfig, images=("~no such user.png",)).input.images == (tmp_path / "~no such user.png",)


@pytest.mark.parametrize("model", COMMANDS.values(), ids=COMMANDS)
def test_every_option_is_described_and_its_default_is_the_one_that_holds(model):
    for option in options_of(model).values():
        assert (option.field.description or "").endswith(".")
        assert option.of(model()) == option.field.default


FUNCTIONS: dict[str, tuple[Callable[..., Any], Any]] = {
    "run": (gpu_cluster.run, api.RunOptions),
    "compare": (gpu_cluster.compare, api.CompareOptions),
    "predict": (gpu_cluster.predict, api.PredictOptions),
    "embed": (gpu_cluster.embed, api.EmbedOptions),
    "export": (gpu_cluster.export, api.ExportOptions),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_python_functions_name_the_options_of_the_config_with_types_that_fit_their_defaults(command):
    function, typed = FUNCTIONS[command]
    declared = {name: option for name, option in options_of(COMMANDS[command]).items() if name not in INTERNAL}
    shown = inspect.signature(function).parameters
    hints = get_type_hints(typed)
    assert set(hints) - INTERNAL == set(declared) - {"images"}
    for name in set(declared) - {"images"}:
        default = declared[name].field.default
        assert shown[name].default == default
        # This is what `help` shows: plain types, and the description of each option.
        assert "Validator" not in str(shown[name])
        assert f"\n{name}\n    {(declared[name].field.description or '')[:40]}" in (function.__doc__ or "")
        TypeAdapter(hints[name], config={"arbitrary_types_allowed": True}).validate_python(default)


@pytest.mark.parametrize("command", ["run", "compare", "predict", "export"])
def test_the_command_line_has_the_options_of_the_config_and_no_others(command):
    own = {"--help", "--config", "--quiet", "--verbose", "--debug", "--open", "--out", "--no-normalize", "--undo"}
    expected = {o.flag for o in options_of(COMMANDS[command]).values() if o.name not in INTERNAL | {"images"}}
    found = typer.main.get_command(app).get_command(None, command)  # type: ignore[attr-defined]
    flags = {flag for parameter in found.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert {flag for flag in flags if flag.startswith("--")} - own == expected - own


# What a command has not


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (PredictConfig, {"k": 9}),
        (PredictConfig, {"pooling": "max"}),
        (PredictConfig, {"thumbnails": 3}),
        (CompareConfig, {"pooling": "max"}),
        (CompareConfig, {"preset": "notebook"}),
        (CompareConfig, {"thumbnails": 3}),
        (EmbedJobConfig, {"input_list": "a.txt"}),
        (RunConfig, {"algorithms": ("ward",)}),
    ],
)
def test_an_option_that_a_command_has_not_is_refused_from_python_and_from_a_file(tmp_path, model, options):
    ((name, value),) = options.items()
    command = next(command for command, known in COMMANDS.items() if known is model)
    with pytest.raises(ConfigError, match=f"unknown option '{name}' of {command}; known are"):
        build_config(model, **options)
    section = next(o.section for known in COMMANDS.values() for o in options_of(known).values() if o.name == name)
    text = f"{name} = {json.dumps(value)}\n"
    file = written(tmp_path, text if section is None else f"[{section}]\n{text}")
    where = name if section in {None, *model.model_fields} else section
    with pytest.raises(ConfigError, match=f"config key '{where}'.* belongs to .*; {command} has no such option"):
        build_config(model, file)


def test_predict_refuses_what_it_used_to_ignore(tmp_path):
    options: dict[str, Any] = {"k": 9, "pooling": "max", "thumbnails": 3}
    with pytest.raises(ConfigError, match="unknown option 'k' of predict"):
        gpu_cluster.predict(tmp_path, tmp_path, out=tmp_path / "p.csv", **options)


def earlier_record(**changed: Any) -> dict[str, Any]:
    """Return the config that earlier versions recorded, of run and of compare alike: every option of every command."""
    both: dict[str, Any] = RunConfig().model_dump(mode="json")
    both |= {"compare": {"features": ["hog"], "algorithms": ["ward"]}}
    return both | changed


@pytest.mark.parametrize("model", [RunConfig, CompareConfig])
def test_the_record_of_an_earlier_version_gives_a_command_its_own_options(tmp_path, caplog, model):
    record = written(tmp_path, json.dumps({"config": earlier_record(seed=7)}), "run.json")
    config: JobConfig = build_config(model, record)
    expected: dict[str, Any] = {"seed": 7} | (
        {"features": ("hog",), "algorithms": ("ward",)} if model is CompareConfig else {}
    )
    assert config == build_config(model, **expected)
    assert caplog.records == []


@pytest.mark.parametrize(("of", "to"), [(RunConfig, CompareConfig), (CompareConfig, RunConfig)])
def test_the_record_of_another_command_gives_what_both_have_without_a_word(tmp_path, caplog, of, to):
    content = build_config(of, seed=7, image_size=64).model_dump(mode="json")
    record = written(tmp_path, json.dumps({"config": content}), "run.json")
    assert build_config(to, record) == build_config(to, seed=7, image_size=64)
    assert caplog.records == []


def test_the_record_of_a_comparison_can_be_given_with_the_default_preset(tmp_path):
    record = written(tmp_path, json.dumps({"config": CompareConfig().model_dump(mode="json")}), "run.json")
    assert build_config(RunConfig, record, preset="default") == RunConfig()


def test_no_names_from_python_leave_those_of_a_file(tmp_path):
    file = written(tmp_path, '[compare]\nfeatures = ["hog"]\n')
    assert build_config(CompareConfig, file, features=(), algorithms=[]).compare.features == ("hog",)


def test_a_record_with_a_key_of_no_command_is_refused(tmp_path):
    record = written(tmp_path, json.dumps({"config": earlier_record(embed={"polling": "max"})}), "run.json")
    with pytest.raises(ConfigError, match=r"unknown config key 'polling' in \[embed\]"):
        build_config(RunConfig, record)


@pytest.mark.parametrize(("ks", "text"), [(range(2, 21), "2:20"), (range(2, 11, 4), "2:10:4"), (range(5, 6), "5:5")])
def test_python_takes_a_range_of_k_as_its_own(ks, text):
    assert build_config(RunConfig, k_range=ks) == build_config(RunConfig, k_range=text)


@pytest.mark.parametrize("ks", [range(5, 5), range(9, 2, -1)])
def test_a_range_that_is_empty_or_goes_downwards_is_refused(ks):
    with pytest.raises(
        ConfigError, match=r"--k-range: a range of k must increase and must not be empty; found range\("
    ):
        build_config(RunConfig, k_range=ks)


def test_the_command_of_a_comparison_has_its_names_and_no_options_of_run():
    config = build_config(CompareConfig, features=("hog", "colours"), algorithms="kmeans, ward", k=3)
    assert command_line(config) == "gpu-cluster compare --k 3 --features hog,colours --algorithms kmeans,ward"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "notebook"},
        {"images": ("a", "b/c.png"), "labels": "l.csv", "file_col": "name", "pca": "none", "k_range": "2:8:3"},
        {"images": ("a",), "labels_from_folders": True, "holdout": 0.5, "whitening": 0.5, "pca": 12, "tol": 0.0},
        {"preset": "notebook", "k": 3, "fit": "crop", "seed": 1, "thumbnails": 5, "out": "results"},
    ],
)
def test_a_config_written_to_a_run_record_reads_back_the_same(tmp_path, options):
    config = build_config(RunConfig, **options)
    record = written(tmp_path, json.dumps({"config": config.model_dump(mode="json")}), "run.json")
    # But where the results go, which repeating a run must not replace.
    assert build_config(RunConfig, record, out=config.report.out) == config


@pytest.mark.parametrize(
    ("ran", "given", "expected"),
    [
        ("ncnn", {}, "ncnn"),
        ("tensorflow", {}, "tensorflow"),
        ("ncnn", {"engine": "auto"}, "auto"),
        ("ncnn", {"device": "gpu"}, "auto"),
        # A comparison ran both.
        ("ncnn, tensorflow", {}, "auto"),
    ],
)
def test_a_run_record_repeats_with_the_engine_that_ran_where_auto_was_asked_for(tmp_path, ran, given, expected):
    record = {"config": build_config(RunConfig).model_dump(mode="json"), "engine": ran}
    file = written(tmp_path, json.dumps(record), "run.json")
    assert build_config(RunConfig, file, **given).embed.engine == expected


def test_what_the_record_of_an_earlier_version_does_not_hold_is_told(tmp_path, caplog):
    content = build_config(RunConfig, k=7).model_dump(mode="json")
    del content["embed"]["pooling"], content["seed"]
    record = written(tmp_path, json.dumps({"config": content}), "run.json")
    build_config(RunConfig, record, pooling="max", labels=None)
    assert [entry.getMessage() for entry in caplog.records] == [
        f"'{record}', written by an earlier version, has no --seed; 0 is used"
    ]
    caplog.clear()
    assert build_config(RunConfig, record, seed=1).embed.pooling == "gem-4-5"
    assert "has no --pooling; gem-4-5 is used" in caplog.text


def test_what_is_taken_in_place_of_it_is_what_the_preset_of_the_record_says(tmp_path, caplog):
    content = build_config(RunConfig, preset="notebook").model_dump(mode="json")
    del content["sweep"]["sweep_space"], content["sweep"]["default_range"], content["score"]
    config = build_config(RunConfig, written(tmp_path, json.dumps({"config": content}), "run.json"))
    assert config.sweep.sweep_space == "scaled"
    told = [entry.getMessage().split("has no ")[1] for entry in caplog.records]
    assert told == ["--sweep-space; scaled is used", "--silhouette-sample; 20000 is used", "--holdout; 0.2 is used"]


def test_a_flag_goes_over_a_run_record(tmp_path):
    config = build_config(RunConfig, k=4, image_size=64)
    record = written(tmp_path, json.dumps({"config": config.model_dump(mode="json")}), "run.json")
    again = build_config(RunConfig, record, k=5)
    assert (again.sweep.k, again.embed.image_size) == (5, 64)


@pytest.mark.parametrize(
    ("before", "given"),
    [
        ({"labels": "a.csv"}, {"labels_from_folders": True}),
        ({"labels_from_folders": True}, {"labels": "a.csv"}),
        ({"cache": "store"}, {"no_cache": True}),
        ({"no_cache": True}, {"cache": "store"}),
    ],
)
def test_a_flag_replaces_the_option_of_a_run_record_that_it_excludes(tmp_path, before, given):
    record = {"config": build_config(RunConfig, **before).model_dump(mode="json")}
    file = written(tmp_path, json.dumps(record), "run.json")
    assert build_config(RunConfig, file, **given) == build_config(RunConfig, **given)


# Embeddings in place of a network


def test_with_embeddings_the_options_of_the_network_are_not_those_of_a_preset_or_a_record(tmp_path):
    for config in (
        build_config(RunConfig, preset="notebook", embeddings="x.npy"),
        build_config(RunConfig, record_of(tmp_path, pooling="max", engine="ncnn"), embeddings="x.npy", device="gpu"),
    ):
        assert config.embed == RunConfig().embed
        assert shlex.split(command_line(config))[-2:] == ["--embeddings", str(Path.cwd() / "x.npy")]
    assert "--engine" not in command_line(build_config(RunConfig, preset="notebook", embeddings="x.npy"))


def test_names_and_maker_of_a_records_embeddings_are_not_those_of_others_that_are_given(tmp_path):
    file = record_of(tmp_path, embeddings="x.npy", embedding_names="n.txt", embedded_by="me")
    assert build_config(RunConfig, file).given.embedded_by == "me"
    config = build_config(RunConfig, file, embeddings="y.parquet")
    assert config.given == build_config(RunConfig, embeddings="y.parquet").given


def test_a_file_that_repeats_the_defaults_of_the_network_is_taken_with_embeddings(tmp_path):
    text = called("config", "show", "--embeddings", "x.npy", "--seed", "5").out
    config = build_config(RunConfig, written(tmp_path, text))
    assert (config.given.embeddings, config.seed, config.embed) == (Path.cwd() / "x.npy", 5, RunConfig().embed)


def record_of(tmp_path: Path, **options: Any) -> Path:
    return written(
        tmp_path, json.dumps({"config": build_config(RunConfig, **options).model_dump(mode="json")}), "run.json"
    )


@pytest.mark.parametrize(
    "text", ["[given]\nembeddings = 'x.npy'\n[embed]\nfit = 'stretch'\n", "[embed]\nfit = 'stretch'\n"]
)
def test_options_of_the_network_beside_embeddings_are_refused_where_somebody_chose_them(tmp_path, text):
    message = r"with --embeddings no network runs, and its options mean nothing; leave out the one or the other"
    with pytest.raises(ConfigError, match=rf"--fit \(file .*\): {message}"):
        build_config(RunConfig, written(tmp_path, text), embeddings="x.npy")
    options: dict[str, Any] = {"engine": "auto", "weights": "w.h5", "image_size": 224, "precision": "tf32"}
    for name, value in options.items():
        with pytest.raises(ConfigError, match=rf"--{name.replace('_', '-')} \(command line\): {message}"):
            build_config(RunConfig, embeddings="x.npy", **{name: value})


def test_another_preset_than_that_of_a_run_record_is_refused(tmp_path):
    record = written(tmp_path, json.dumps({"config": build_config(RunConfig).model_dump(mode="json")}), "run.json")
    with pytest.raises(ConfigError, match=r"every option of its preset 'default'; leave out --preset or --config"):
        build_config(RunConfig, record, preset="notebook")


def numbers_of(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, list[Any]]]:
    """Yield the options of a config that are numbers, with their bounds."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numbers_of(field.annotation)
            continue
        # The bounds of a number that may be left out are those of one part of its type.
        inner = [one for kind in kinds for one in get_args(kind)]
        if not {int, float} & {*kinds, *inner}:
            continue
        bounds = [*field.metadata, *(bound for one in inner if isinstance(one, FieldInfo) for bound in one.metadata)]
        yield name, field, bounds


# `export` has no numbers.
@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "export"])
def test_every_number_has_bounds(command):
    found = list(numbers_of(COMMANDS[command]))
    assert len(found) >= 4
    for name, _field, bounds in found:
        kinds = {type(bound).__name__ for bound in bounds}
        assert kinds & {"Ge", "Gt"}, name
        assert kinds & {"Le", "Lt"}, name

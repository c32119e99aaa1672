"""The runner and the reporter of the paper's experiments, on data made here."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import nestedseg
from benchmarks.paper import models, report, run, trial
from benchmarks.paper.claims import CLAIMS
from benchmarks.paper.data import DATA, split
from benchmarks.paper.plan import FULL, PROFILES, QUICK, ROWS, Profile, Protocol, plan
from benchmarks.paper.results import Results, scores_of
from benchmarks.paper.run import Runner, claimed
from benchmarks.paper.score import by_size, object_scores, vote
from benchmarks.paper.stats import Comparison, compare, summarise, together, within
from nestedseg.data import synthetic_nuclei
from nestedseg.training.settings import Settings

# -- the plan --------------------------------------------------------------------------------------

EXPERIMENTS = {  # what the issue lists, as rows
    "Tables I and IV": ["{em,nuclei}/{unet-l1,unet-l2,unet-l3,unet,wide-unet,unet-e,unetp,unetp-ds,"
                        "unetpp,unetpp-ds}"],
    "Table IV, 3-D": ["hippocampus/{unet,wide-unet,unetp,unetp-ds,unetpp,unetpp-ds}"],
    "Fig. 4": ["{em,nuclei}/{unet,unetp-ds,unetpp-ds}/{vgg,resnet,densenet}"],
    "Fig. 6": ["{em,nuclei}/{unet-l1,unetpp-l2,unetpp-l3,unetpp-ds}"],
}


def expand(pattern):
    """``a/{b,c}`` to ``a/b`` and ``a/c``."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, _, after = rest.partition("}")
    return [name for each in inside.split(",") for name in expand(before + each + after)]


@pytest.mark.parametrize("profile", [QUICK, FULL], ids=lambda profile: profile.name)
def test_the_plan_holds_every_experiment_as_often_as_asked(profile):
    names = [str(each.row) for each in plan(profile, trials=4)]
    for patterns in EXPERIMENTS.values():
        for name in (name for pattern in patterns for name in expand(pattern)):
            assert names.count(name) == 4, name
    assert profile.trials >= 3
    assert len(ROWS) == len(set(ROWS))


def test_a_plan_cut_short_leaves_whole_rows():
    names = [(str(each.row), each.number) for each in plan(QUICK, trials=2)]
    assert names[:3] == [("em/unet-l1", 0), ("em/unet-l2", 0), ("em/unet-l3", 0)]
    assert names[10] == ("em/unet-l1", 1)
    assert names[20] == ("nuclei/unet-l1", 0)


def test_rows_are_chosen_by_pattern_and_by_what_data_is_there():
    chosen = {str(each.row) for each in plan(QUICK, 1, ["em/unetpp*"])}
    assert {"em/unetpp", "em/unetpp-l2"} <= chosen and "em/unet" not in chosen
    assert {each.row.data for each in plan(FULL, 1, data=["em", "other"])} == {"em"}
    with pytest.raises(ValueError, match=r"em/unett.*did you mean 'em/unet'"):
        plan(QUICK, 1, ["em/unett"])


def parameters(name, profile=FULL):
    each = plan(profile, 1, [name])[0]
    dims = DATA[each.row.data].dims
    with torch.device("meta"):
        model = nestedseg.create(**each.options, dims=dims, in_channels=1)
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name, expected", {
    "em/unet-l1": 100_961, "em/unet-l2": 465_953, "em/unet-l3": 1_925_025, "em/unet": 7_759_521,
    "em/wide-unet": 9_282_246, "em/unet-e": 8_728_356, "em/unetp": 8_728_257,
    "em/unetpp": 9_041_601, "em/unetpp-ds": 9_041_700, "hippocampus/unet": 22_575_329,
    "hippocampus/unetpp": 26_198_273}.items())
def test_the_full_networks_have_the_papers_parameters(name, expected):
    assert parameters(name) == expected


def test_unetpp_l1_alone_is_unet_l1():
    with torch.device("meta"):
        a, b = (nestedseg.create(name, depth=1) for name in ("unetpp", "unet"))
    assert a.state_dict().keys() == b.state_dict().keys()


def test_the_encoders_of_figure_4_exist_and_carry_their_decoders():
    for profile in PROFILES.values():
        assert all(map(timm.is_model, profile.encoders.values()))
    assert parameters("em/unetpp-ds/resnet", QUICK) > 2_500_000  # ResNet-18 to stride 16


# -- the split -------------------------------------------------------------------------------------


def test_em_is_split_by_file_order_as_in_the_paper():
    parts = split(range(30), DATA["em"])
    assert parts == {"training": list(range(24)), "validation": [24, 25, 26], "test": [27, 28, 29]}


def test_nuclei_are_split_at_random_the_same_every_time():
    parts = split(range(664), DATA["nuclei"])
    assert [len(part) for part in parts.values()] == [332, 133, 199]
    assert sorted(itertools.chain(*parts.values())) == list(range(664))
    assert parts == split(range(664), DATA["nuclei"])
    assert parts["training"] != sorted(parts["training"])
    assert [len(part) for part in split(range(664), DATA["nuclei"], 20).values()] == [10, 4, 6]


def test_too_few_images_are_refused():
    with pytest.raises(ValueError, match="3 images cannot be split"):
        split(range(3), DATA["em"])


# -- statistics ------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_by_hand():
    found = summarise([1, 2, 3])
    half = 4.302653 / math.sqrt(3)  # the 97.5 % point of Student's t with 2 degrees of freedom
    assert (found.mean, found.sd, found.n) == (2, 1, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-6)
    assert math.isnan(summarise([5]).sd)


def test_welchs_test_by_hand():
    # t = -3 / sqrt(1/3 + 1/3) = -3.674, 4 degrees of freedom
    found = compare([1, 2, 3], [4, 5, 6])
    assert found.difference == -3 and found.p == pytest.approx(0.0213117, abs=1e-6)
    half = 2.776445 * math.sqrt(2 / 3)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half), abs=1e-5)
    # variances 1 and 100: Welch-Satterthwaite gives 2.04 degrees of freedom, Student 4
    assert compare([1, 2, 3], [10, 20, 30]).p == pytest.approx(0.0877, abs=2e-4)
    assert math.isnan(compare([1], [2, 3]).p) and math.isnan(compare([1, 1], [2, 2]).p)


def test_a_loss_within_a_margin():
    assert within([0.1, 0.2, 0.15], 1.0).verdict == "agrees"
    assert within([2.1, 2.2, 2.0], 1.0).verdict == "disagrees"
    assert within([0.0, 2.0, 1.0], 1.0).verdict == "cannot tell"
    assert within([0.1, 0.2, 0.15], 1.0).difference == pytest.approx(0.85)


@pytest.mark.parametrize("difference, p, expected", [
    (1, 0.049, "agrees"), (-1, 0.049, "disagrees"), (1, 0.05, "cannot tell"),
    (-1, 0.9, "cannot tell"), (1, math.nan, "cannot tell")])
def test_verdicts(difference, p, expected):
    assert Comparison(difference, p=p).verdict == expected


def test_a_claim_with_several_comparisons():
    above, open_, below = Comparison(1, p=0.04), Comparison(1, p=0.2), Comparison(-1, p=0.04)
    assert together([above, above]) == "agrees"
    assert together([above, open_]) == "cannot tell"
    assert together([below]) == "disagrees"
    assert together([open_, below]) == "cannot tell"  # of two, one is below 0.05 more often
    assert together([open_, above, Comparison(-1, p=0.01)]) == "disagrees"


# -- scores ----------------------------------------------------------------------------------------


def test_objects_are_scored_by_hand():
    objects = np.array([[1, 1, 0, 0, 0, 7]])
    mask = np.array([[True, False, True, False, True, True]])
    # 1 has two pixels, one found, and the false one beside it; 7 has one, and a false one beside
    assert object_scores(mask, objects) == [(2, pytest.approx(1 / 3)), (1, pytest.approx(1 / 2))]
    assert object_scores(mask, np.zeros_like(objects)) == []


def test_objects_in_seven_groups():
    found = by_size([(size, size / 100) for size in range(14, 0, -1)])
    assert found["number"] == [2] * 7
    assert found["iou"] == pytest.approx([0.015 + 0.02 * index for index in range(7)])
    assert found["edges"][0] == 1 and found["edges"][-1] == 14
    assert by_size([(5, 0.5)])["iou"].count(None) == 6


def test_heads_vote_and_windows_overlap():
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 255, (40, 48), np.uint8)
    model = nestedseg.create("unetpp", encoder_channels=(2, 3, 4), in_channels=1,
                             deep_supervision=True).eval()
    heads = vote(model, image, 48, 0.5)
    assert list(heads) == ["1", "2", "ensemble"]
    x = nestedseg.preprocess(image, model)
    with torch.no_grad():
        logits = model.forward_heads(x)
    torch.testing.assert_close(heads["1"], logits[1].sigmoid())
    torch.testing.assert_close(heads["ensemble"], (heads["1"] + heads["2"]) / 2)
    parts = vote(model, image, 32, 0.5)["ensemble"]
    assert parts.shape == (1, 1, 40, 48) and 0 < (parts - heads["ensemble"]).abs().max() < 0.1


def test_scores_are_of_all_images_together():
    found = scores_of([[3, 1, 0, 6], [0, 0, 1, 9]])
    assert found["iou"] == pytest.approx(3 / 5) and found["specificity"] == pytest.approx(15 / 16)


# -- a whole plan, tiny ----------------------------------------------------------------------------

TINY = Profile("tiny", trials=2, widths=(2, 3, 4, 5, 6), wide=(3, 4, 5, 6, 7), protocols={
    "nuclei": Protocol(Settings(epochs=2, steps=2, batch=2, patch=32, lr=0.01, precision="no"),
                       "batch", images=10),
    "hippocampus": Protocol(Settings(epochs=1, steps=1, batch=1, patch=16, precision="no"),
                            "instance", images=10)},
    encoders={"vgg": "vgg11", "resnet": "test_resnet", "densenet": "densenet121"})
DONE = [*plan(TINY, 2, ["nuclei/unet", "nuclei/unetpp-ds"]),
        *plan(TINY, 1, ["nuclei/unet-l1", "hippocampus/unet"])]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("nuclei", "hippocampus"):
        for kind in ("images", "labels"):
            (folder / name / kind).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(*synthetic_nuclei(10, 32))):
        Image.fromarray(image).save(folder / f"nuclei/images/{index}.png")
        Image.fromarray(label).save(folder / f"nuclei/labels/{index}.png")
        label = np.zeros((16, 20, 18), np.uint8)
        label[4:12, 4:9 + index, 4:12] = 1 + index % 2
        np.save(folder / f"hippocampus/images/{index}.npy", label + rng.normal(0, 0.3, label.shape))
        np.save(folder / f"hippocampus/labels/{index}.npy", label)
    return folder


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """The folder of a plan that has been run."""
    folder = tmp_path_factory.mktemp("done")
    Runner(data, folder / "out", folder / "runs").run(DONE)
    return folder


def numbers(path):
    """All of a result but what differs when it is repeated."""
    found = json.loads(path.read_text())
    return {key: value for key, value in found.items() if key not in trial.APART}


def test_a_plan_leaves_one_file_for_each_trial(done):
    files = sorted(path.name for path in (done / "out").glob("*.json"))
    assert files == sorted(f"{each.name}.json" for each in DONE)
    found = json.loads((done / "out" / "nuclei.unetpp-ds.0.json").read_text())
    assert len(found["curves"]) == 2 and set(found["curves"][0]["scores"]) == {"1", "2", "3", "4",
                                                                              "ensemble"}
    assert found["split"] == {"training": 5, "validation": 2, "test": 3}
    assert {head: len(counts) for head, counts in found["test"]["counts"].items()} == {
        head: 3 for head in ("1", "2", "3", "4", "ensemble")}
    assert all(sum(counts) == 32 * 32 for counts in found["test"]["counts"]["1"])
    assert found["maps"] == ["x0_0", "x0_1", "x0_2", "x0_3", "x0_4"]
    assert Image.open(done / "out" / "nuclei.unetpp-ds.0.png").size == (5 * 32, 32)
    assert [cost["depth"] for cost in found["costs"]] == [1, 2, 3, 4]
    assert found["costs"][0]["peak_bytes"] < found["costs"][3]["peak_bytes"]
    assert found["machine"]["device"] == "cpu" and found["times"]["all"] > 0
    assert (done / "runs" / "nuclei.unetpp-ds.0" / "model" / "config.json").is_file()
    assert not list((done / "runs").rglob("checkpoint.pt"))


def test_what_is_done_is_not_done_again(data, done, monkeypatch):
    monkeypatch.setattr(trial, "run", None)
    Runner(data, done / "out", done / "runs").run(DONE)


def test_other_settings_are_refused(data, done):
    other = replace(TINY, widths=(3, 4, 5, 6, 7))
    with pytest.raises(ValueError, match=r"nuclei.unet.0.json is of a trial with other settings"):
        Runner(data, done / "out", done / "runs").run(plan(other, only=["nuclei/unet"]))


def test_another_number_is_another_seed(done):
    one, other = (numbers(done / "out" / f"nuclei.unet.{number}.json") for number in (0, 1))
    assert one["curves"] != other["curves"] and one["test"] != other["test"]


def test_the_same_seed_gives_the_same_file_also_when_killed(data, done, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def fit(*args, log, **options):
        def die(line):
            if line.startswith("epoch   1"):
                raise Killed
        return whole(*args, log=die, **options)

    whole = trial.fit
    runner = Runner(data, tmp_path, tmp_path / "runs")
    trials = plan(TINY, 1, only=["nuclei/unet"])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trial, "fit", fit)
        runner.run(trials)
    assert not list(tmp_path.glob("*.json")) and list(tmp_path.rglob("checkpoint.pt"))
    runner.run(trials)
    name = "nuclei.unet.0.json"
    assert numbers(tmp_path / name) == numbers(done / "out" / name)


def test_two_processes_do_not_take_one_trial(tmp_path):
    with claimed(tmp_path) as first, claimed(tmp_path) as second:
        assert first and not second
    with claimed(tmp_path) as third:
        assert third


def test_processes_that_accelerate_launches_train_apart(monkeypatch):
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2"),
                        ("ACCELERATE_USE_CPU", "")):
        monkeypatch.setenv(name, value)
    assert run.stand_alone("cpu") == (1, 2)
    assert run.stand_alone("cpu") == (0, 1)


def test_the_command_line_names_what_is_wrong(data, tmp_path, monkeypatch, capsys):
    run.main(["--data", str(data), "--list", "--only", "hippocampus/*"])
    assert "hippocampus/unetpp-ds" in capsys.readouterr().out
    for rows, message in (("x", "no row is 'x'"), ("em/*", "holds no data set")):
        with pytest.raises(SystemExit, match=message):
            run.main(["--data", str(data), "--only", rows])


# -- the report ------------------------------------------------------------------------------------


def test_the_report_puts_the_papers_numbers_beside_ours(done, tmp_path):
    text = report.report(Results(done / "out"), "tiny", tmp_path)
    assert "benchmarks.paper.run --data DIR --profile tiny --only nuclei/unetpp-ds" in text
    row = next(line for line in text.splitlines() if "`nuclei/unetpp-ds`" in line)
    ious = Results(done / "out").scores("nuclei/unetpp-ds")
    assert f"| 92.37 ± 0.98 | {np.mean(ious):.2f} ± {np.std(ious, ddof=1):.2f} |" in row
    assert "| V-Net | `hippocampus/unet` |" in text and "71.17 ± 4.53" in text
    assert "97.28 ± 4.85" in text and "5.35" not in text  # p-values below 0.001 are given as such
    for number in (5, 6, 7, 8, 9):
        picture = tmp_path / "images" / "paper" / f"tiny-fig{number}.png"
        assert f"({picture.relative_to(tmp_path)})" in text
        assert min(Image.open(picture).size) > 200
    assert not (tmp_path / "images" / "paper" / "tiny-fig4.png").exists()


def test_claims_are_of_what_has_been_run(done):
    results = Results(done / "out")
    tests = {claim.text: claim.test(results) for claim in CLAIMS}
    counts = [len(found) for found in tests.values()]
    assert counts[:6] == [1, 0, 0, 0, 0, 1]  # nuclei: UNet++ and U-Net; L3 and L4
    assert counts[6] == 1  # L1 embedded and isolated
    assert 1 <= counts[7] <= 7
    text, comparison, paper = tests[CLAIMS[0].text][0]
    assert text == "Nuclei: UNet++ DS > U-Net" and paper == pytest.approx(92.37 - 90.57)
    assert comparison.difference == pytest.approx(np.mean(results.scores("nuclei/unetpp-ds"))
                                                  - np.mean(results.scores("nuclei/unet")))
    embedded = tests[CLAIMS[6].text][0][1].difference
    assert embedded == pytest.approx(np.mean(results.scores("nuclei/unetpp-ds", head="1"))
                                     - np.mean(results.scores("nuclei/unet-l1")))


def test_the_page_has_a_place_for_every_profile():
    text = report.PAGE.read_text(encoding="utf-8")
    for name in (*(f"paper-{profile}" for profile in ("quick", "full")), "paper-instances"):
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1


@pytest.mark.slow
def test_the_best_model_gets_its_card(data, done, monkeypatch, capsys):
    monkeypatch.setitem(PROFILES, "tiny", TINY)
    results = Results(done / "out")
    best = models.best_trial(results, "nuclei")
    row, number = best["trial"]["row"], best["trial"]["number"]
    means = {row: np.mean(results.scores(row)) for row in results.rows if row.startswith("nuclei")}
    assert row == max(means, key=means.get) and models.best_trial(results, "em") is None
    assert models.file_name(best) == f"{row.replace('/', '.')}.{number}"
    small = results.of("nuclei/unet-l1")[0]
    folder = done / "runs" / models.file_name(small)
    models.write_card(folder, small, data / "nuclei", "me/nuclei")
    assert f"nestedseg publish {folder} --repo me/nuclei" in capsys.readouterr().out
    assert "mIoU" in (folder / "repo" / "README.md").read_text()
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == small["best_epoch"]

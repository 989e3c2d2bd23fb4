"The supervised networks of the comparison: which there are, how each is trained, and what is kept."

from types import SimpleNamespace

import numpy as np
import pytest

from astroclip.core.config import sample_path
from astroclip.core.profiles import settings as profile_settings
from astroclip.surveys.pairs import Survey
from astroclip.training.baseline_runs import (
    Job,
    collect,
    feeds,
    job_list,
    new_network,
    read_baselines,
    recipe,
    released_split,
    run_job,
    run_jobs,
)

SETTINGS = profile_settings("smoke", "train_baselines") | dict(size=24, width=4, image_epochs=3, few_steps=2)


def test_budgets_that_the_survey_cannot_pay_are_left_out():
    assert {job.n for job in job_list(SETTINGS | dict(budgets=[10, 500]), 500)} == {0, 10}
    assert all(
        job.n == 0 and job.network != "convnext"
        for job in job_list(SETTINGS | dict(protocol="released"), 10**6)
    )
    assert (
        len({job.name for job in job_list(SETTINGS | dict(repeats=2), 10**6)}) == 16
    )  # 6 with all labels, 6 with few, 4 with a second draw


@pytest.mark.parametrize("profile", ["mini", "standard", "paper"])
def test_few_labels_get_steps_enough(profile):
    settings = profile_settings(profile, "train_baselines")
    for n in (8, 80, 800):
        config = recipe(Job("resnet", "redshift", n), n, settings)
        assert config.steps(n) >= settings["few_steps"] and config.batch_size <= n


def test_released_is_plain_adam():
    config = recipe(Job("resnet", "redshift"), 6400, SETTINGS | dict(protocol="released"))
    assert (config.lr, config.final, config.weight_decay, config.clip, config.warmup) == (
        5e-4,
        1.0,
        0.0,
        None,
        0,
    )


def test_released_split_draws_inside_the_training_galaxies():
    split = np.random.default_rng(0).choice(3, 1000)
    out = released_split(split, 1)
    assert (out[split != 0] == -1).all() and abs((out == 1).sum() / (split == 0).sum() - 0.2) < 0.01
    assert (out == released_split(split, 1)).all() and (out != released_split(split, 2)).any()


@pytest.mark.parametrize("network, outputs", [("resnet", 1), ("convnext", 5), ("conv_attention", 5)])
def test_every_network_has_one_output_a_label(network, outputs):
    net = new_network(Job(network, "redshift"), outputs, SETTINGS)
    assert net.config["outputs"] == outputs


def test_a_finished_job_is_read_and_a_missing_one_trained(tmp_path):
    survey, jobs = Survey(sample_path()), [Job("resnet", "redshift"), Job("resnet", "properties", 100)]
    split, y = np.arange(len(survey)) % 4, np.stack([survey.redshift, survey.magnitude[:, 0]], 1)
    wanted = dict(validation=split == 1, test=split == 2)
    feed = feeds(survey.path, SETTINGS)["image"]
    found = [
        run_job(job, feed, y[:, 0] if job.task == "redshift" else y, split, wanted, SETTINGS, tmp_path)
        for job in jobs
    ]
    assert found[0]["test"].shape == ((split == 2).sum(),) and found[1]["test"].shape == (
        (split == 2).sum(),
        2,
    )
    (tmp_path / "jobs" / f"{jobs[1].name}.npz").unlink()  # killed before the second was kept
    again = [
        run_job(
            job,
            feed if i else None,
            y[:, 0] if job.task == "redshift" else y,
            split,
            wanted,
            SETTINGS,
            tmp_path,
        )
        for i, job in enumerate(jobs)
    ]
    for a, b in zip(found, again):
        for name in wanted:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5)
    collect(jobs, tmp_path)
    stored = read_baselines(SimpleNamespace(path=tmp_path, settings=SETTINGS))
    assert set(stored) == set(jobs)
    np.testing.assert_array_equal(stored[jobs[1]]["test"], again[1]["test"])
    assert (tmp_path / jobs[0].name / "config.json").is_file() and not (tmp_path / jobs[1].name).exists()


def test_two_processes_find_what_one_finds(tmp_path):
    survey, jobs = Survey(sample_path()), [Job("resnet", "redshift"), Job("conv_attention", "redshift", 100)]
    split = np.arange(len(survey)) % 4
    arguments = dict(redshift=survey.redshift), {job: split for job in jobs}, dict(test=split == 2), SETTINGS
    for n in (1, 2):
        done = list(run_jobs(jobs, survey.path, *arguments, tmp_path / str(n), processes=n))
        assert {job for job, _ in done} == set(jobs)
    for job in jobs:
        one, two = (np.load(tmp_path / str(n) / "jobs" / f"{job.name}.npz")["test"] for n in (1, 2))
        np.testing.assert_allclose(
            one, two, atol=1e-3
        )  # not bit by bit: sums depend on where an array begins in memory

"""The verdict is a pure function of figures: each kind of sentence, and the borders between them."""

import pytest

from rsbdali.bench.report.verdict import Loader, Model, StepPair, step_verdict, verdict

OURS = Loader(name="rsbdali", images_per_s=980, cpu_us_per_image=2000)
TIMM = Loader(name="timm", images_per_s=545, cpu_us_per_image=3600)
HERE = {"threads": 2, "cores": 2, "device": "cpu"}


def fast(images_per_s: float, cpu_us: float = 900) -> Loader:
    return Loader(name="rsbdali", images_per_s=images_per_s, cpu_us_per_image=cpu_us)


def test_fast_enough_loader_does_not_hold_training_back() -> None:
    said = verdict(fast(9800), model=Model(name="resnet50", images_per_s=6900), threads=16, cores=16, device="cuda")
    assert said == "the loader gives 9,800 images/s, resnet50 takes 6,900: data will not hold training back (1.4 ×)."


def test_loader_with_nothing_to_spare_is_said_to_just_keep_up() -> None:
    said = verdict(fast(7000), model=Model(name="resnet50", images_per_s=6900), threads=16, cores=16, device="cuda")
    assert "just keeps up (1 ×)" in said


def test_slow_loader_names_the_threads_it_would_take() -> None:
    # 2 threads give 980, so 6,900 with a tenth to spare takes 1.1 * 2 * 6900 / 980 = 15.5
    said = verdict(OURS, model=Model(name="resnet50", images_per_s=6900), threads=2, cores=2, device="cpu")
    assert "data holds training back (0.14 ×)" in said
    assert "about 16 threads, and it has 2 (this machine has 2 cores)" in said


def test_spare_cores_become_an_option_to_set() -> None:
    said = verdict(OURS, model=Model(name="resnet50", images_per_s=1900), threads=2, cores=16, device="cpu")
    assert "set --workers 5" in said


@pytest.mark.parametrize(("device", "limit"), [("cuda", "the GPU's decoding"), ("cpu", "the disk")])
def test_idle_threads_are_no_reason_for_more_threads(device: str, limit: str) -> None:
    model = Model(name="resnet50", images_per_s=12000)
    said = verdict(fast(8000, cpu_us=200), model=model, threads=16, cores=16, device=device)
    assert "idle 90% of the time" in said
    assert limit in said


def test_a_plain_loader_that_suffices_is_recommended() -> None:
    said = verdict(OURS, peers=(TIMM,), model=Model(name="vit_large", images_per_s=90), **HERE)
    assert said.startswith("the plain loader would do as well: timm gives 545 images/s with 2 threads")
    assert "DALI brings no speed here (it uses 1.8 × less CPU)" in said


def test_a_plain_loader_that_only_just_suffices_is_not_recommended() -> None:
    said = verdict(OURS, peers=(TIMM,), model=Model(name="resnet50", images_per_s=540), **HERE)
    assert "data will not hold training back (1.8 ×)" in said


def test_without_a_model_the_peers_are_compared() -> None:
    said = verdict(OURS, peers=(TIMM,), **HERE)
    assert said == "rsbdali gives 980 images/s with 2 threads, 2,000 CPU-µs an image: 1.8 × timm (545)."


def test_a_faster_peer_is_named() -> None:
    said = verdict(TIMM, peers=(Loader(name="other", images_per_s=700, cpu_us_per_image=2700),), **HERE)
    assert said.endswith("0.78 × other (700). other is the faster one here.")


def test_equal_peers_are_called_the_same() -> None:
    said = verdict(TIMM, peers=(Loader(name="other", images_per_s=540, cpu_us_per_image=2700),), **HERE)
    assert "the same as other (540)" in said


def test_alone_it_says_how_to_compare() -> None:
    assert "--peers timm" in verdict(OURS, threads=1, cores=2, device="cpu")


def test_another_dali_graph_is_not_the_plain_loader() -> None:
    basic = Loader(name="dali-basic", images_per_s=540, cpu_us_per_image=3600)
    said = verdict(OURS, peers=(basic,), model=Model(name="vit_large", images_per_s=90), **HERE)
    assert "data will not hold training back" in said


def test_rounds_side_by_side_count_more_than_medians() -> None:
    paired = Loader(name="timm", images_per_s=900, cpu_us_per_image=3600, ours_by_it=2.03)
    assert verdict(OURS, peers=(paired,), **HERE).endswith("2 × timm (900).")


def test_cpu_time_is_shown_beside_the_rate() -> None:
    paired = Loader(name="timm", images_per_s=545, cpu_us_per_image=3600, ours_by_it=1.8, ours_by_its_cpu=1.76)
    assert verdict(OURS, peers=(paired,), **HERE).endswith("1.8 × timm (545; 1.8 × by CPU-µs).")


def test_rounds_that_overlap_show_no_difference_however_far_the_medians_are() -> None:
    slow = Loader(name="timm", images_per_s=1200, cpu_us_per_image=3600, ours_by_it=0.8, overlaps=True)
    said = verdict(OURS, peers=(slow,), **HERE)
    assert said.endswith("no difference from timm is shown (1,200, the rounds overlap).")
    assert "faster" not in said
    faster = Loader(name="other", images_per_s=1100, cpu_us_per_image=2000, ours_by_it=0.9)
    assert verdict(OURS, peers=(slow, faster), **HERE).endswith("other is the faster one here.")


def test_a_peer_that_does_less_is_no_loader_that_would_do() -> None:
    spdl = Loader(name="spdl", images_per_s=1900, cpu_us_per_image=900, does_less=True)
    said = verdict(OURS, peers=(spdl,), model=Model(name="vit_large", images_per_s=90), **HERE)
    assert "data will not hold training back" in said
    assert verdict(OURS, peers=(spdl,), **HERE).endswith("spdl is the faster one here, and does less.")


def pair(kind: str = "", ratio: float = 1.4, *, overlaps: bool = False) -> StepPair:
    return StepPair(
        ours=f"rsbdali{kind}",
        images_per_s=4820,
        peer=f"timm{kind}",
        peer_images_per_s=3443,
        ratio=ratio,
        overlaps=overlaps,
    )


def test_the_step_is_compared_with_its_like() -> None:
    said = step_verdict([pair(), pair("-nomix", overlaps=True)], 4820)
    assert said == (
        "rsbdali trains 4,820 images/s, timm 3,440: 1.40 ×; "
        "rsbdali-nomix trains 4,820 images/s, timm-nomix 3,440: no difference is shown."
    )
    assert step_verdict([], 48.2) == "rsbdali trains 48.2 images/s; --peers timm compares it."

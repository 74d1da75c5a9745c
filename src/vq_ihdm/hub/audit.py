"""Whether the memorisation audit of an evaluation report (`vq_ihdm.evaluation.report`) was passed."""

from typing import Any

MARGIN = 0.05  # a smaller deviation from the floor is no reason for alarm, however narrow the interval


def memorisation_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for figure in report["figures"] if figure["group"] == "memorisation"]


def audit_failures(report: dict[str, Any]) -> list[str]:
    """A sentence for each space in which generated images favour training subjects.

    Distance ratio and share decide: they fail where the whole 95 % interval lies more than `MARGIN` on the wrong side
    of the floor, the same measure of held-out images. The copy rate does not: images smoother than scans exceed its
    floor without copying anybody.
    """
    failures = []
    for figure in memorisation_figures(report):
        if figure["generated"] is None or figure["floor"] is None:
            continue
        (lowest, highest), floor = figure["generated"]["interval"], figure["floor"]["value"]
        too_near = figure["name"] == "nearest_ratio" and highest < (1 - MARGIN) * floor
        too_often = figure["name"] == "training_share" and lowest > floor + MARGIN
        if too_near or too_often:
            failures.append(
                f"In {figure['features']} generated images favour training subjects: {figure['title'].lower()} "
                f"{figure['generated']['value']:.3f}, of held-out images {floor:.3f}."
            )
    return failures

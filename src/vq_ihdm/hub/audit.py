"""Whether the memorisation audit of an evaluation report (`vq_ihdm.evaluation.report`) was passed."""

from typing import Any

MARGIN = 0.05  # less than so much below the floor is no reason for alarm, however narrow the interval


def memorisation_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for figure in report["figures"] if figure["group"] == "memorisation"]


def audit_failures(report: dict[str, Any]) -> list[str]:
    """A sentence for each space in which generated images stand nearer to training than to held-out subjects.

    The distance ratio decides: it fails where its whole 95 % interval lies more than `MARGIN` below the floor, the
    same ratio of held-out images. The copy rate does not: images smoother than scans exceed its floor without copying.
    """
    failures = []
    for figure in memorisation_figures(report):
        if figure["name"] != "nearest_ratio" or figure["generated"] is None:
            continue
        highest, floor = figure["generated"]["interval"][1], figure["floor"]["value"] if figure["floor"] else 1.0
        if highest < (1 - MARGIN) * floor:
            failures.append(
                f"In {figure['features']} generated images stand nearer to training than to held-out subjects "
                f"(ratio {figure['generated']['value']:.3f}, floor {floor:.3f})."
            )
    return failures

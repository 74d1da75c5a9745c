"""Whether the memorisation audit of an evaluation report (`vq_ihdm.evaluation.report`) was passed."""

from typing import Any


def memorisation_figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for figure in report["figures"] if figure["group"] == "memorisation"]


def audit_failures(report: dict[str, Any]) -> list[str]:
    """The sentences of the report's verdict that speak against the model; none if it passed.

    A report of schema 1 has no verdict, and its copy rate missed copies: it does not pass.
    """
    if "audit" not in report:
        return ["The report is of an earlier version and says nothing about copies; run evaluate.py again."]
    return report["audit"]["failures"]

"""The collections the builders know, and under which terms their images may be used."""

from dataclasses import dataclass, replace

from ..errors import InputError


@dataclass(frozen=True)
class Source:
    """Where images come from. `licence` is an id of the Hub's list; `people`: the subjects are real."""

    name: str
    description: str
    licence: str
    terms: str
    redistribution: bool
    people: bool = True


OWN = Source(
    name="own scans",
    description="Axial slices of brain MRI.",
    licence="other",
    terms="The builder was not told under which terms these scans may be used. Treat them as confidential.",
    redistribution=False,
)
ADNI = Source(
    name="ADNI",
    description="Axial slices of T1-weighted brain MRI from the Alzheimer's Disease Neuroimaging Initiative.",
    licence="other",
    terms="ADNI data use agreement (adni.loni.usc.edu). It forbids passing the images on: this set must not be "
    "published.",
    redistribution=False,
)
IXI = Source(
    name="IXI",
    description="Axial slices of T1-weighted brain MRI of healthy volunteers from the IXI data set.",
    licence="cc-by-sa-3.0",
    terms="IXI data set (brain-development.org/ixi-dataset), Creative Commons BY-SA 3.0: name the source and share "
    "derived sets alike.",
    redistribution=True,
)
OASIS1 = Source(
    name="OASIS-1",
    description="Axial slices of skull-stripped T1-weighted brain MRI from OASIS-1 (cross-sectional).",
    licence="odbl",
    terms="Open Database License 1.0 as published, and the OASIS data use terms (oasis-brains.org): acknowledge "
    "OASIS-1 (Marcus et al., Journal of Cognitive Neuroscience 2007) and do not try to identify anyone.",
    redistribution=True,
)
TEMPLATE = Source(
    name="MNI152 template",
    description="Synthetic axial slices **derived from one anatomical template** (the MNI152 T1, grey-matter and "
    "white-matter maps of nilearn), deformed and recoloured at random. There are no patients in this set: it serves "
    "demonstrations and tests, and no measurement on it says anything about people.",
    licence="other",
    terms="Derived from the ICBM 152 template. Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University. Permission to use, copy, modify, and distribute is granted "
    "for any purpose and without fee, provided that this copyright notice appears in all copies; there is no warranty.",
    redistribution=True,
    people=False,
)


def with_licence(source: Source, licence: str | None) -> Source:
    """Own scans that their owner lets others have under `licence`.

    Raises:
        InputError: a licence for a collection that has its own.
    """
    if licence is None:
        return source
    if source is not OWN:
        raise InputError(f"{source.name} comes with its own terms; leave --license out.")
    return replace(OWN, licence=licence, terms=f"Published by the builder under {licence}.", redistribution=True)

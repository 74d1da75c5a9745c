import argparse

import pytest

from vq_ihdm import arguments

INSIDE = {
    "positive_int": "3",
    "non_negative_int": "0",
    "seed_int": "4294967295",
    "positive_float": "1e-9",
    "non_negative_float": "0",
    "probability": "1",
    "positive_probability": "1",
    "share_below_one": "0.999",
    "percentage": "99.5",
    "length_mm": "0.05",
    "position_mm": "-1000",
}
OUTSIDE = {
    "positive_int": "0",
    "non_negative_int": "-1",
    "seed_int": "4294967296",
    "positive_float": "0",
    "non_negative_float": "-1e-9",
    "probability": "1.01",
    "positive_probability": "0",
    "share_below_one": "1",
    "percentage": "100.1",
    "length_mm": "0.04",
    "position_mm": "1001",
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_makes_sense_is_read_and_the_rest_refused(name):
    parse = getattr(arguments, name)
    assert parse(INSIDE[name]) == float(INSIDE[name])
    for text in (OUTSIDE[name], "nan", "inf", "-inf", "1e30", "", "three"):
        with pytest.raises(argparse.ArgumentTypeError, match="is no"):
            parse(text)


def test_help_tells_the_defaults():
    parser = argparse.ArgumentParser(formatter_class=arguments.HelpFormatter)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=True, help="left and right")
    parser.add_argument("--sizes", nargs=2, default=[176, 208], help="of images")
    parser.add_argument("--project", help="by default none")
    parser.add_argument("--quiet", action="store_true", help="say nothing")
    lines = [line for line in parser.format_help().splitlines() if "default" in line]
    told = [line.split("  ")[-1].strip() for line in lines]
    assert told == ["(default: 0)", "left and right (default: yes)", "of images (default: 176 208)", "by default none"]


def test_every_type_has_its_example():
    types = {name for name, value in vars(arguments).items() if callable(value) and name[0].islower()}
    assert set(INSIDE) == set(OUTSIDE) == types

"""check that a method, of this or any other package, keeps what every method promises

r2q check-method mypackage.kmeans:KMeans --granularity g64
"""

import json
from typing import Annotated, Literal


def check_method(
    method: Annotated[str, "METHOD", "package.module:Class, or a file of baselines/"],
    /,
    granularity: Annotated[str, "GRANULARITY", "g<size>, channel or tensor"] = "g32",
    bits: Annotated[Literal["2", "3", "4"], "BITS", "of a code"] = "2",
    options: Annotated[str, "JSON", 'options of the method, such as {"rounds": 10}'] = "{}",
) -> int:
    from r2q.contract import check_method

    try:
        chosen = json.loads(options)
    except json.JSONDecodeError as error:
        raise ValueError(f"--options: {options} is not JSON ({error})") from None
    return min(check_method(method, granularity, int(bits), chosen), 1)

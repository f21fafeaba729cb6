"""time a packed checkpoint beside its decoded twin: decoding, prefill, memory

r2q bench results/embedded/mini-llama/r2q-g64/seed0 --out bench.csv
"""

from pathlib import Path
from typing import Annotated


def bench(
    folder: Annotated[Path, "FOLDER", "a packed checkpoint"],
    /,
    out: Annotated[Path, "CSV", "the rows; as JSON beside it, too"],
    batch: Annotated[list[int], "N", "rows at once (1 4 16)"] = [1, 4, 16],  # noqa: B006
    context: Annotated[int | None, "N", "tokens before the one timed (512, or as many as the model takes)"] = None,
    repeats: Annotated[int, "N", "times of which the median is taken (20)"] = 20,
    device: Annotated[str, "DEVICE", "auto, cpu, cuda, cuda:1 (auto)"] = "auto",
    compiled: Annotated[bool, "", "also decode through torch.compile"] = False,
) -> None:
    from r2q.bench import bench

    for row in bench(folder, out, batch, context, device, repeats, compiled):
        what = f"{row['model']:<7}"
        if "phase" in row:
            what += f" {row['phase']:<8} batch {row['batch']:>3}  context {row['context']:>4}"
            what += "  compiled" if row["compiled"] else ""
        found = row.get("reason") or f"{row['median_ms']:10.3f} ms  {row['tokens_per_second']:12.1f} tokens/s"
        print(f"{what}  {found}")

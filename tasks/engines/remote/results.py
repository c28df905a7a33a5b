"""A provider's results made ours: decoded under limits in a child, cut to what was asked, written as was asked.

What a provider sends is a stranger's audio too. Runs in a child only, but for `take_over`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.audio import ProbeLimits
from tasks.engines.child import run_in_child
from tasks.engines.contract import Commission
from tasks.engines.report import Report
from tasks.finish import Finish
from tasks.kind import Context, InvalidInput, QualityGate, RunLimits

#: How far a job is when its results are here.
FETCHED = 0.9


async def take_over(
    commission: Commission,
    files: Sequence[Path],
    context: Context,
    limits: RunLimits,
    measures: Mapping[str, str],
    bytes_max: int,
) -> None:
    """Hand over the results in `files`, one for each of `commission.names`.

    None is longer than was asked. Raises `QualityGate` for a file that is no audio: the provider's doing.
    """
    results = [
        {
            "path": path.absolute(),
            "name": name,
            "seconds_max": usage.seconds_out,
            "seconds_in": usage.seconds_in,
        }
        for path, name, usage in zip(files, commission.names, commission.asked, strict=True)
    ]
    longest = max(usage.seconds_out for usage in commission.asked)
    arguments = {
        "results": results,
        "limits": asdict(ProbeLimits(bytes_max=bytes_max, seconds_max=int(longest * 2) + 60)),
        "measures": dict(measures),
        "finish": commission.finish,
    }
    await run_in_child("tasks.engines.remote.results:rewrite", arguments, context, limits)


def rewrite(
    report: Report,
    results: Sequence[Mapping[str, Any]],
    limits: Mapping[str, Any],
    measures: Mapping[str, str],
    finish: Finish,
) -> None:
    """Write each result in the format that was asked, cut to its length."""
    for number, result in enumerate(results):
        report.progress(FETCHED + (1 - FETCHED) * number / len(results), f"taking over {result['name']}")
        try:
            _rewrite(report, result, limits, measures, finish)
        except InvalidInput as refused:
            # As what doesn't pass the gates: the same file would be fetched again, so it has to be made anew.
            raise QualityGate(f"the provider's {result['name']} {refused.message}") from None
        result["path"].unlink()
    report.progress(1.0, "taken over")


def _rewrite(
    report: Report,
    result: Mapping[str, Any],
    limits: Mapping[str, Any],
    measures: Mapping[str, str],
    finish: Finish,
) -> None:
    import soundfile

    from tasks.engines.embedded.material import sound_at
    from tasks.engines.reading import examine
    from tasks.engines.writing import OutputFile, output_rate_for

    found = examine(report, result["path"], limits)
    rate, seconds_max = output_rate_for(found["sample_rate"]), Decimal(result["seconds_max"])
    left = int(seconds_max * rate)
    bits = 16 if soundfile.info(result["path"]).subtype in ("PCM_16", "MPEG_LAYER_III", "VORBIS", "OPUS") else 24
    with OutputFile(report, result["name"], finish, rate, found["channels"], bits) as file:
        for block in sound_at(result["path"], rate, result["name"]):
            file.write(block[:left])
            left -= min(left, len(block))
        file.hand_over(result["seconds_in"], measures)

"""`calibrate`: once a day, what runs were like is compared with how they ended (L2)."""

from __future__ import annotations

from prefect import flow

from tasks.feedback import Calibration, calibrate_today, tell_declines


@flow(name="calibrate", persist_result=False)
async def calibrate() -> Calibration:
    """Success rates, confidence, routing and what got worse; the same day again changes and tells nothing more."""
    made = await calibrate_today()
    await tell_declines(made)
    return made

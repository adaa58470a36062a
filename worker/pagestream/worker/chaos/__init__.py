"""`pagestream chaos`: jobs with known answers, faults, and a table of what was lost or repeated."""

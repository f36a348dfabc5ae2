package metrics

var (
	// ScrubDamaged is the number of damaged parts that the newest scrub of the member's
	// files has found.
	ScrubDamaged = newGauge("quorate_scrub_damaged", "Damaged parts of files that the newest scrub has found")
	// ScrubFinished is when a scrub was last finished, in seconds of Unix time; 0: not yet.
	ScrubFinished = newGauge("quorate_scrub_finished_timestamp_seconds", "When a scrub of all files was last finished, in Unix time; 0 if none was since the start")
	// ScrubBytes counts the bytes that scrubs have read.
	ScrubBytes = newCounter("quorate_scrub_read_bytes_total", "Bytes that scrubs have read")
)

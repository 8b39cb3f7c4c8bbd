package check

// For tests of what a host shows.
var (
	LookAtHost = lookAtHost
	Elsewhere  = elsewhere
)

// For tests of what counts of what was loaded.
var RefusedSince = refusedSince

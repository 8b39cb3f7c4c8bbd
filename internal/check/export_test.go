package check

// For tests of what a host shows.
var (
	LookAtHost  = lookAtHost
	Elsewhere   = elsewhere
	Missing     = (*Facts).missing
	LastWritten = lastWritten
)

// For tests of what counts of what was loaded.
var RefusedSince = refusedSince

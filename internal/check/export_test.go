package check

// For tests of what a host shows.
var (
	LookAtHost = lookAtHost
	Elsewhere  = elsewhere
)

package check

// For tests of what /proc says.
var (
	FindProcess = findProcess
	WaitsFor    = waitsFor
	ParsePeer   = parsePeer
	Connections = connections
)

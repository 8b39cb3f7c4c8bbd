//go:build !linux

package daemon

import (
	"net"
	"os"
)

// peer goes by the mode of the socket, which lets nobody else connect.
func peer(*net.UnixConn) (uid, pid int, err error) { return os.Geteuid(), 0, nil }

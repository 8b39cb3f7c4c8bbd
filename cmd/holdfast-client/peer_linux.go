package main

import (
	"os"
	"syscall"
)

// trusted returns why nobody may take the word of who listens at the other end of fd, nil where it is this account, or root. In a directory to which others
// may write anybody could listen, and PostgreSQL removes what it is told is archived.
func trusted(fd int) error {
	peer, err := syscall.GetsockoptUcred(fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return err
	}
	if self := os.Geteuid(); self != 0 && int(peer.Uid) != self && peer.Uid != 0 {
		return problem("another account listens there")
	}
	return nil
}

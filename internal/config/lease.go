package config

import (
	"errors"
	"slices"
	"strings"
)

// Service returns who keeps leases: none, archive, postgres, or the address of a service.
func (l Lease) Service() string {
	switch {
	case l.Keeper != "":
		return l.Keeper
	case l.Role != "":
		return "archive"
	}
	return "none"
}

// leaseKeeper checks what keeps leases.
func leaseKeeper(text string) error {
	if slices.Contains([]string{"none", "archive"}, text) {
		return nil
	}
	return errors.New("must be none or archive")
}

// hostName checks the name of a host, which is shown to people and stored.
func hostName(text string) error {
	if len(text) > 200 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("must be up to 200 characters of ASCII without spaces")
	}
	return nil
}

package config

import (
	"errors"
	"net"
	"time"
)

// zone checks the name of a time zone.
func zone(text string) error {
	if _, err := time.LoadLocation(text); err != nil {
		return errors.New("must be the name of a time zone that this host knows, such as Europe/Berlin or UTC")
	}
	return nil
}

// listenAddress checks where something is served.
func listenAddress(text string) error {
	if text == "off" {
		return nil
	}
	if _, p, err := net.SplitHostPort(text); err != nil || port(p) != nil && p != "0" {
		return errors.New("must be an address to listen at, such as 127.0.0.1:9351 or :9351, or off")
	}
	return nil
}

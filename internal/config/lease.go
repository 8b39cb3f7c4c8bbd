package config

import (
	"errors"
	"net"
	"regexp"
	"slices"
	"strconv"
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

// Address takes the address of a service apart: etcd, consul or kube, whether it is spoken to over TLS, at which hosts, and what is behind them without slashes at
// its ends. For what is no such address kind is "".
func (l Lease) Address() (kind string, secure bool, hosts []string, path string) {
	scheme, rest, ok := strings.Cut(l.Service(), "://")
	if !ok || strings.HasPrefix(scheme, "postgres") {
		return "", false, nil, ""
	}
	kind, secure = strings.CutSuffix(scheme, "s")
	list, path, _ := strings.Cut(rest, "/")
	return kind, secure, strings.Split(list, ","), strings.Trim(path, "/")
}

// leaseKeeper checks what keeps leases.
func leaseKeeper(text string) error {
	if slices.Contains([]string{"none", "archive", "postgres"}, text) {
		return nil
	}
	var wrong error = errors.New("must be none, archive, postgres, postgres://…, etcd://host:port, consul://host:port (etcds and consuls over TLS; several hosts with commas " +
		"between them) or kube://namespace/name, without a secret in it")
	if strings.Contains(text, "@") || strings.Contains(text, "password") {
		wrong = unshown{wrong}
	}
	if scheme, _, _ := strings.Cut(text, "://"); scheme == "postgres" || scheme == "postgresql" {
		// Several hosts with ports are no URL to others.
		if authority, _, _ := strings.Cut(strings.TrimPrefix(text, scheme+"://"), "/"); authority == text || strings.Contains(text, "password=") || hasPassword(authority) {
			return wrong
		}
		return nil
	}
	kind, _, hosts, path := Lease{Keeper: text}.Address()
	switch kind {
	case "etcd", "consul":
		for _, h := range hosts {
			if _, port, err := net.SplitHostPort(h); err != nil || portNumber(port) != nil || strings.ContainsAny(h, "@?# ") {
				return wrong
			}
		}
		return nil
	case "kube":
		if len(hosts) == 1 && kubeName.MatchString(hosts[0]) && kubeName.MatchString(path) && !strings.HasPrefix(text, "kubes") {
			return nil
		}
	}
	return wrong
}

// unshown says what is wrong with a value that is not to be repeated, as there may be a secret in it.
type unshown struct{ error }

// hasPassword reports whether the authority of a URL has user:password@ before its hosts.
func hasPassword(authority string) bool {
	i := strings.LastIndex(authority, "@")
	return i >= 0 && strings.Contains(authority[:i], ":")
}

func portNumber(text string) error {
	if n, err := strconv.Atoi(text); err != nil || n < 1 || n > 65535 {
		return errors.New("must be a port, from 1 to 65535")
	}
	return nil
}

// kubeName is what Kubernetes calls a DNS label, with room for the name of a job behind it.
var kubeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$`)

// hostName checks the name of a host, which is shown to people and stored.
func hostName(text string) error {
	if len(text) > 200 || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("must be up to 200 characters of ASCII without spaces")
	}
	return nil
}

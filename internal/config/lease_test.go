package config_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/config"
)

func TestWhatKeepsLeases(t *testing.T) {
	for _, c := range []struct {
		env  string
		want string // of Service and Address; "" is an error
	}{
		{"", "none"},
		{"HOLDFAST_ROLE=replica", "archive"},
		{"HOLDFAST_ROLE=any", "archive"},
		{"HOLDFAST_ROLE=primary HOLDFAST_LEASE=none", "none"},
		{"HOLDFAST_LEASE=archive", "archive"},
		{"HOLDFAST_LEASE=postgres", "postgres"},
		{"HOLDFAST_LEASE=postgres://db1:5432,db2/postgres?user=lease", "postgres://db1:5432,db2/postgres?user=lease"},
		{"HOLDFAST_LEASE=etcd://a:2379,b:2379", "etcd false [a:2379 b:2379] "},
		{"HOLDFAST_LEASE=etcds://[::1]:2379/orders/", "etcd true [[::1]:2379] orders"},
		{"HOLDFAST_LEASE=consul://c:8500", "consul false [c:8500] "},
		{"HOLDFAST_LEASE=consuls://c:8501/a/b", "consul true [c:8501] a/b"},
		{"HOLDFAST_LEASE=kube://postgres/orders", "kube false [postgres] orders"},
		{"HOLDFAST_LEASE=kube://postgres", ""},
		{"HOLDFAST_LEASE=kubes://postgres/orders", ""},
		{"HOLDFAST_LEASE=kube://Postgres/orders", ""},
		{"HOLDFAST_LEASE=etcd://a", ""},
		{"HOLDFAST_LEASE=etcd://user:hush@a:2379", ""},
		{"HOLDFAST_LEASE=postgres://lease:hush@db1/postgres", ""},
		{"HOLDFAST_LEASE=postgres://db1/postgres?password=hush", ""},
		{"HOLDFAST_LEASE=zookeeper://a:2181", ""},
		{"HOLDFAST_LEASE=yes", ""},
		{"HOLDFAST_LEASE_TTL=1s", ""},
		{"HOLDFAST_LEASE_HOST=a\tb", ""},
	} {
		s, err := config.Load(config.Sources{Environ: strings.Fields(strings.ReplaceAll(c.env, "\t", "\x01"))})
		if err != nil {
			if c.want != "" || strings.Contains(err.Error(), "hush") {
				t.Errorf("%s: %v", c.env, err)
			}
			continue
		}
		got := s.Lease.Service()
		if kind, secure, hosts, path := s.Lease.Address(); kind != "" {
			got = fmt.Sprint(kind, " ", secure, " ", slices.Clone(hosts), " ", path)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.env, got, c.want)
		}
	}
}

package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// labelName is what Prometheus takes for a label.
var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

// LabelMap returns the labels by name.
func (m Metrics) LabelMap() map[string]string {
	labels, _ := parseLabels(m.Labels) // checked when it was set
	return labels
}

// parseLabels reads name=value pairs with commas between them, such as shard=1,tier=gold. Names that Prometheus keeps for itself, and those that
// samples of jobs have, are refused.
func parseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || !labelName.MatchString(name) || strings.HasPrefix(name, "__") || value == "" {
			return nil, fmt.Errorf("must be labels such as shard=1,tier=gold: %q is none", pair)
		}
		if slices.Contains([]string{"operation", "phase", "le", "version", "revision", "storage", "kind", "error_type", "holder"}, name) {
			return nil, fmt.Errorf("%s is a label that samples have", name)
		}
		if _, twice := labels[name]; twice {
			return nil, fmt.Errorf("the label %s is there twice", name)
		}
		labels[name] = value
	}
	return labels, nil
}

func labelList(text string) error {
	_, err := parseLabels(text)
	return err
}

// webAddress checks an address that is spoken to by HTTP. It may have a password, which no error is to show.
func webAddress(text string) error {
	if u, err := url.Parse(text); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("must be an address such as http://host:9091")
	}
	return nil
}

// hostPort checks a host with its port.
func hostPort(text string) error {
	host, p, err := net.SplitHostPort(text)
	if err != nil || host == "" || port(p) != nil {
		return errors.New("must be a host and a port, such as localhost:8125")
	}
	return nil
}

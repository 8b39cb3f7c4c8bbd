package metrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/store/meter"
)

// Stat is one value for StatsD.
type Stat struct {
	Name  string
	Value int64
	Type  string // c counts, g is a gauge, ms a timing in milliseconds
}

// Stats returns what is sent after a command: what it did with the store by the names of WAL-G, and where it was a job what it came to.
// WAL-G's counts of answers by HTTP status are not among them, as one call may be many requests.
func Stats(c meter.Counts, j *Job) []Stat {
	all := []Stat{
		{"walg_uploader_uploaded_files_total", c.Put.Calls - c.Put.Failed, "c"},
		{"walg_uploader_uploaded_files_failed_total", c.Put.Failed, "c"},
		{"walg_s3_bytes_written", c.Written, "g"},
		{"walg_s3_bytes_read", c.Read, "g"},
	}
	if c.Put.Calls > 0 {
		all = append(all, Stat{"walg_s3_upload_time", c.Put.Time.Milliseconds() / c.Put.Calls, "ms"})
	}
	if j != nil && j.Result != Skipped {
		all = append(all, Stat{"holdfast_job_" + string(j.Result), 1, "c"}, Stat{"holdfast_job_duration", j.End.Sub(j.Start).Milliseconds(), "ms"})
	}
	return all
}

// maxDatagram is what fits into one packet on every usual network, in bytes.
const maxDatagram = 1400

// SendStatsD sends stats by UDP, with tags in InfluxDB's form behind each name: name,tag=value:1|c. Whether anybody listens is not known.
func SendStatsD(ctx context.Context, address string, tags map[string]string, stats []Stat) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", address)
	if err != nil {
		return err
	}
	var suffix strings.Builder
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		fmt.Fprintf(&suffix, ",%s=%s", plain(name), plain(tags[name]))
	}
	var packet []byte
	var errs []error
	send := func() {
		if len(packet) > 0 {
			_, err := conn.Write(packet)
			errs = append(errs, err)
		}
		packet = packet[:0]
	}
	for _, s := range stats {
		line := s.Name + suffix.String() + ":" + strconv.FormatInt(max(0, s.Value), 10) + "|" + s.Type + "\n"
		if len(packet)+len(line) > maxDatagram {
			send()
		}
		packet = append(packet, line...)
	}
	send()
	return errors.Join(append(errs, conn.Close())...)
}

// plain makes of text what means nothing in a line of StatsD.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || strings.ContainsRune(",=:|@#\x7f", r) {
			return '_'
		}
		return r
	}, text)
}

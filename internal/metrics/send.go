package metrics

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus/push"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"holdfast/internal/atomicfile"
)

// Push adds the samples to what a Pushgateway at address has of a group: those of the same names are replaced, the others stay. The group is
// that of the labels and the labels job (holdfast unless labels say otherwise) and type (typ unless they do). Name and password in the
// address are for basic authentication, and are in no error.
func (r *Registry) Push(ctx context.Context, client *http.Client, address, typ string, labels map[string]string) error {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("the address of the Pushgateway is not a URL") // which may have a password
	}
	user := u.User
	u.User = nil
	job := "holdfast"
	if labels["job"] != "" {
		job = labels["job"]
	}
	p := push.New(strings.TrimSuffix(u.String(), "/"), job).Gatherer(r.prom).Client(client)
	if user != nil {
		password, _ := user.Password()
		p.BasicAuth(user.Username(), password)
	}
	if labels["type"] == "" {
		p.Grouping("type", typ)
	}
	for name, value := range labels {
		if name != "job" {
			p.Grouping(name, value)
		}
	}
	return p.AddContext(ctx)
}

// maxTextfile bounds what is read of a file that was written before.
const maxTextfile = 1 << 20

// WriteTextfile makes the samples the content of the file at path, for node_exporter's textfile collector, which sees the old file or the new.
// Of a job that failed the file keeps what it has of the last success.
func (r *Registry) WriteTextfile(path string) error {
	families, err := r.prom.Gather()
	if err != nil {
		return err
	}
	if f, err := os.Open(path); err == nil {
		families = keep(families, f)
		_ = f.Close() // only read
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.Write(path, 0o644, func(w io.Writer) error { return writeText(w, families) })
}

// keep adds to families what old has of a job's last success, where they have none. What cannot be read is nothing.
func keep(families []*dto.MetricFamily, old io.Reader) []*dto.MetricFamily {
	has := func(name string) bool {
		return slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == name })
	}
	if !has("holdfast_job_succeeded") {
		return families
	}
	text, err := io.ReadAll(io.LimitReader(old, maxTextfile))
	if err != nil {
		return families
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	before, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return families
	}
	for i := range figures {
		name := figures[i].Name
		if f := before[name]; strings.HasPrefix(name, lastSuccess) && f != nil && !has(name) {
			families = append(families, f)
		}
	}
	return families
}

func writeText(w io.Writer, families []*dto.MetricFamily) error {
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(w, f); err != nil {
			return err
		}
	}
	return nil
}

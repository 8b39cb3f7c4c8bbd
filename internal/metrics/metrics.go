// Package metrics counts, and hands the counts to Prometheus, its Pushgateway, node_exporter and StatsD.
//
// What is known is handed in as plain values: what an archive holds, what a job came to, what was done with a store. Each is turned
// into samples by a pure function. Names and units are those of Prometheus' conventions (https://prometheus.io/docs/practices/naming);
// the names of WAL-G's exporter are there as well. Times are given as such and as ages, the latter as of the moment they are asked for.
package metrics

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"holdfast/internal/store/meter"
)

// Traffic is what was done with stores: *meter.Counters, or the sum of several.
type Traffic interface{ Read() meter.Counts }

// Options says what a Registry is to tell.
type Options struct {
	Release, Revision string            // "" is left out
	Store             Traffic           // what was done with stores; nil is left out
	Process           bool              // the Go runtime's figures and those of the process too: of one that stays
	Agent             func() Agent      // what an agent has to do; nil is left out
	Labels            map[string]string // that every sample gets
	Now               func() time.Time  // nil is time.Now
}

// Registry holds the figures of one process. Its methods may be called at the same time.
type Registry struct {
	prom *prometheus.Registry
	now  func() time.Time

	mu       sync.Mutex
	archive  *Archive  // nil until it was looked at
	waiting  *Waiting  // until then
	storages []Storage // likewise
	down     bool      // it could not be looked at last time
	failed   int       // how often not
	tried    bool
	jobs     map[string]runs
}

// runs are the last run of a job, and the last that succeeded, nil where there was none.
type runs struct {
	last Job
	good *Job
}

// New returns a Registry.
func New(o Options) *Registry {
	r := &Registry{prom: prometheus.NewRegistry(), now: o.Now, jobs: map[string]runs{}}
	if r.now == nil {
		r.now = time.Now
	}
	reg := prometheus.WrapRegistererWith(o.Labels, r.prom)
	if o.Release != "" {
		build := Sample{"holdfast_build_info", []string{o.Release, o.Revision}, 1}
		reg.MustRegister(&collector{section: Built, collect: func() []Sample { return []Sample{build} }})
	}
	reg.MustRegister(&collector{section: Jobs, collect: r.jobSamples})
	reg.MustRegister(&collector{section: Holding, collect: func() []Sample { return r.archiveSamples(Holding) }})
	reg.MustRegister(&collector{section: Exposed, collect: func() []Sample { return append(r.archiveSamples(Exposed), storeErrors(o.Store)...) }})
	if o.Agent != nil {
		reg.MustRegister(&collector{section: Agents, collect: func() []Sample { return o.Agent().samples() }})
	}
	if o.Store != nil {
		reg.MustRegister(&storeCollector{collector{section: Storing, collect: func() []Sample { return storeSamples(o.Store.Read()) }}, o.Store})
	}
	if o.Process {
		reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	}
	return r
}

// SetArchive has r tell of an archive from now on as it is in a.
func (r *Registry) SetArchive(a Archive) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.archive, r.down, r.tried = &a, false, true
}

// ArchiveDown notes that the archive could not be looked at. What was seen of it before stays, but for what waits here, which heaps up just then, nil is not known; and
// for which storages answer, none is not known.
func (r *Registry) ArchiveDown(w *Waiting, storages ...Storage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting, r.storages = w, storages; r.archive != nil {
		a := *r.archive
		a.Waiting, a.Storages, r.archive = w, storages, &a
	}
	r.down, r.tried = true, true
	r.failed++
}

// SetJob has r tell of a job's run. Of a job that fails it goes on to tell what it knows of the last success. One that was skipped, as another host has done it, takes a
// failure before it back.
func (r *Registry) SetJob(j Job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.jobs[j.Name]
	if j.Result == Skipped {
		if of.last.Result != Succeeded {
			delete(r.jobs, j.Name)
		}
		return
	}
	if of.last = j; j.Result == Succeeded {
		of.good = &j
	}
	r.jobs[j.Name] = of
}

func (r *Registry) jobSamples() (all []Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, of := range r.jobs {
		all = append(all, of.last.Samples()...)
		if of.good == nil || of.last.Result == Succeeded {
			continue
		}
		for _, s := range of.good.Samples() {
			if strings.HasPrefix(s.Name, lastSuccess) {
				all = append(all, s)
			}
		}
	}
	return all
}

// archiveSamples returns what of the archive's samples is of a section.
func (r *Registry) archiveSamples(of Section) []Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.tried {
		return nil
	}
	all := []Sample{
		{"holdfast_archive_up", nil, one(!r.down)}, {"holdfast_archive_look_errors_total", nil, float64(r.failed)}, {"walg_scrape_errors_total", nil, float64(r.failed)},
	}
	if r.archive != nil {
		all = append(all, r.archive.Samples(r.now())...)
	} else {
		all = append(all, slices.Concat(r.waiting.samples(), storageSamples(r.storages))...)
	}
	exposed := of == Exposed
	return slices.DeleteFunc(all, func(s Sample) bool { return strings.HasPrefix(s.Name, "walg_") != exposed })
}

// WriteText writes all samples in Prometheus' text format.
func (r *Registry) WriteText(w io.Writer) error {
	families, err := r.prom.Gather()
	if err != nil {
		return err
	}
	return writeText(w, families)
}

// Handler answers Prometheus.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.prom, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// collector hands samples of one section to Prometheus.
type collector struct {
	section Section
	collect func() []Sample
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for i := range figures {
		if figures[i].Section == c.section {
			ch <- figures[i].desc()
		}
	}
}

// Collect implements prometheus.Collector. Names from an archive are not trusted to be text, or told apart.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	seen := map[string]bool{}
	for _, s := range c.collect() {
		i := slices.IndexFunc(figures[:], func(f Figure) bool { return f.Name == s.Name })
		labels := make([]string, len(s.Labels))
		for i, l := range s.Labels {
			labels[i] = strings.ToValidUTF8(l, "?")
		}
		key := fmt.Sprintf("%s%q", s.Name, labels)
		if seen[key] {
			continue
		}
		seen[key] = true
		kind := prometheus.GaugeValue
		if figures[i].Counter {
			kind = prometheus.CounterValue
		}
		ch <- prometheus.MustNewConstMetric(figures[i].desc(), kind, s.Value, labels...)
	}
}

// one is a truth as a sample has it.
func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// seconds is a time as a sample has it; zero is 0.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMicro()) / 1e6
}

// age is how long ago t is, at least 0.
func age(now, t time.Time) float64 { return max(0, now.Sub(t)).Seconds() }

// newest returns the later of two times.
func newest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

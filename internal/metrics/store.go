package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/internal/store/meter"
)

// kindOf is the calls of one kind.
type kindOf struct {
	name string
	op   meter.Op
}

// kinds returns the calls by kind, of those kinds that there were.
func kinds(c meter.Counts) (used []kindOf) {
	for _, k := range []kindOf{{"open", c.Open}, {"put", c.Put}, {"stat", c.Stat}, {"list", c.List}, {"delete", c.Delete}, {"copy", c.Copy}} {
		if k.op.Calls+k.op.Running > 0 {
			used = append(used, k)
		}
	}
	return used
}

// storeSamples returns what there is to tell of calls.
func storeSamples(c meter.Counts) []Sample {
	all := []Sample{{"holdfast_store_received_bytes_total", nil, float64(c.Read)}, {"holdfast_store_sent_bytes_total", nil, float64(c.Written)},
		{"holdfast_store_retries_total", nil, float64(c.Retried)}}
	for _, k := range kinds(c) {
		of := []string{k.name}
		all = append(all,
			Sample{"holdfast_store_requests_total", of, float64(k.op.Calls)}, Sample{"holdfast_store_errors_total", of, float64(k.op.Failed)},
			Sample{"holdfast_store_requests_running", of, float64(k.op.Running)}, Sample{"holdfast_store_objects_total", of, float64(k.op.Objects)})
	}
	return all
}

// storeErrors returns failed calls by the name that WAL-G's exporter has for errors; c may be nil.
func storeErrors(c Traffic) (all []Sample) {
	if c == nil {
		return nil
	}
	for _, k := range kinds(c.Read()) {
		if k.op.Failed > 0 {
			all = append(all, Sample{"walg_errors_total", []string{k.name, "storage"}, float64(k.op.Failed)})
		}
	}
	return all
}

// storeCollector adds the histogram to the samples of a store.
type storeCollector struct {
	collector
	counters Traffic
}

// Describe implements prometheus.Collector.
func (c *storeCollector) Describe(ch chan<- *prometheus.Desc) {
	c.collector.Describe(ch)
	ch <- histogram.desc()
}

// Collect implements prometheus.Collector.
func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	c.collector.Collect(ch)
	for _, k := range kinds(c.counters.Read()) {
		buckets, below := map[float64]uint64{}, uint64(0)
		for i, b := range meter.Bounds() {
			below += uint64(k.op.Took[i])
			buckets[b.Seconds()] = below
		}
		below += uint64(k.op.Took[len(k.op.Took)-1])
		ch <- prometheus.MustNewConstHistogram(histogram.desc(), below, k.op.Time.Seconds(), buckets, k.name)
	}
}

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/config"
	"holdfast/internal/metrics"
)

// starts notes that a job begins, of which monitoring is told at the end of the command.
func (a *app) starts(job string) { a.job = &metrics.Job{Name: job, Start: time.Now()} }

// passes notes that the job is not this host's to do.
func (a *app) passes() {
	if a.job != nil {
		a.job.Result = metrics.Skipped
	}
	if a.run != nil {
		a.run.skipped = true
	}
}

// measures notes what the job that began has read, and how long its phases took.
func (a *app) measures(read int64, phases map[string]float64) {
	if a.job != nil {
		a.job.Read, a.job.Phases = read, phases
	}
}

// How long monitoring may take to be told, all of it. StatsD is told after each segment, too, and only waits where its host's name has to be looked up.
const (
	jobPatience    = 3 * time.Second
	statsDPatience = time.Second
)

// tellMonitors tells monitoring what the command came to. What fails here fails nothing. A check that finds something short of a failure did what it was to do.
func (a *app) tellMonitors(err error, status int) {
	if a.inForce == nil {
		return
	}
	m, job, now := &a.inForce.Metrics, a.job, time.Now()
	traffic := a.traffic.Read()
	if job != nil && job.Result == "" {
		job.End, job.ExitStatus, job.Stored, job.PeakMemory = now, status, traffic.Written, peakMemory()
		if job.Read == 0 {
			job.Read = traffic.Read
		}
		job.Result = metrics.Failed
		if status == exitOK || job.Name == leasePush && status == exitCorrupt || errors.As(err, new(*warning)) {
			job.Result = metrics.Succeeded
		}
	}
	var errs []error
	if m.StatsD != "" {
		ctx, cancel := context.WithTimeout(context.Background(), statsDPatience)
		defer cancel()
		if err := metrics.SendStatsD(ctx, m.StatsD, m.StatsDTags, metrics.Stats(traffic, job)); err != nil {
			errs = append(errs, fmt.Errorf("StatsD: %w", err))
		}
	}
	if job != nil && job.Result != metrics.Skipped {
		errs = append(errs, a.tellFile(m, *job), a.tellPushgateway(m, *job))
	}
	if err := errors.Join(errs...); err != nil {
		a.log.Warn("monitoring was not told: " + strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// tellFile writes what a job came to for node_exporter. Each archive and each job has a file of its own.
func (a *app) tellFile(m *config.Metrics, job metrics.Job) error {
	if m.TextfileDir == "" {
		return nil
	}
	r := metrics.New(metrics.Options{Labels: fileLabels(m)})
	r.SetJob(job)
	return r.WriteTextfile(filepath.Join(m.TextfileDir, "holdfast-"+short(a.inForce.Location())+"-"+job.Name+".prom"))
}

// fileLabels returns the labels of samples in files: those that are the Pushgateway's alone are not among them.
func fileLabels(m *config.Metrics) map[string]string {
	labels := m.LabelMap()
	maps.DeleteFunc(labels, func(name, _ string) bool { return name == "job" || name == "type" })
	return labels
}

// tellPushgateway tells the Pushgateway what a job came to, and what it did with the store.
func (a *app) tellPushgateway(m *config.Metrics, job metrics.Job) error {
	if m.Pushgateway == "" {
		return nil
	}
	version, revision, _ := build()
	r := metrics.New(metrics.Options{Release: version, Revision: revision, Store: &a.traffic})
	r.SetJob(job)
	ctx, cancel := context.WithTimeout(context.Background(), jobPatience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	if err := r.Push(ctx, client, m.Pushgateway, job.Name, m.LabelMap()); err != nil {
		return fmt.Errorf("Pushgateway: %w", err)
	}
	return nil
}

// peakMemory returns the most bytes that this process had in memory at once (VmHWM in proc_pid_status(5)), 0 where that is not known.
func peakMemory() int64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer f.Close() // only read
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

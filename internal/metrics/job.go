package metrics

import (
	"maps"
	"slices"
	"time"
)

// Result is what a job came to.
type Result string

// The results.
const (
	Succeeded Result = "succeeded"
	Failed    Result = "failed"
	Skipped   Result = "skipped" // it was not this host's to do: nothing is told of it
)

// Job is one run of a command.
type Job struct {
	Name       string // such as backup-push
	Result     Result
	Start, End time.Time
	ExitStatus int

	Read       int64              // bytes
	Stored     int64              // bytes that the store was given
	Phases     map[string]float64 // seconds, as the report has them; nil where it has none
	PeakMemory int64              // bytes; 0 is not known
}

// lastSuccess begins the names of the figures that a run that fails does not touch.
const lastSuccess = "holdfast_job_last_success_"

// Samples returns what there is to tell of a run.
func (j *Job) Samples() []Sample {
	of := []string{j.Name}
	took := max(0, j.End.Sub(j.Start)).Seconds()
	all := []Sample{
		{"holdfast_job_start_timestamp_seconds", of, seconds(j.Start)},
		{"holdfast_job_end_timestamp_seconds", of, seconds(j.End)},
		{"holdfast_job_duration_seconds", of, took},
		{"holdfast_job_succeeded", of, one(j.Result == Succeeded)},
		{"holdfast_job_exit_status", of, float64(j.ExitStatus)},
	}
	if j.PeakMemory > 0 {
		all = append(all, Sample{"holdfast_job_peak_memory_bytes", of, float64(j.PeakMemory)})
	}
	if j.Result != Succeeded {
		return all
	}
	all = append(all,
		Sample{lastSuccess + "timestamp_seconds", of, seconds(j.End)},
		Sample{lastSuccess + "read_bytes", of, float64(j.Read)},
		Sample{lastSuccess + "stored_bytes", of, float64(j.Stored)})
	if took > 0 {
		all = append(all, Sample{lastSuccess + "bytes_per_second", of, float64(j.Read) / took})
	}
	for _, phase := range slices.Sorted(maps.Keys(j.Phases)) {
		all = append(all, Sample{lastSuccess + "phase_seconds", []string{j.Name, phase}, j.Phases[phase]})
	}
	return all
}

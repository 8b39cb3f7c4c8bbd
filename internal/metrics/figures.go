package metrics

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Section is what a figure is about.
type Section string

// The sections, in the order of docs/metrics.md.
const (
	Jobs    Section = "jobs"    // what the last run of a command came to
	Holding Section = "archive" // what the archive holds
	Agents  Section = "agent"   // what an agent has to do
	Storing Section = "store"   // what this process did with the store
	Exposed Section = "walg"    // the archive by the names of WAL-G's exporter
	Built   Section = "build"
)

// Figure is one metric: what it is called, and what it says. Units are those of its name.
type Figure struct {
	Name    string
	Counter bool // it only grows, until the process ends; others go up and down
	Labels  []string
	Section Section
	Help    string
}

// figures are all there are, but for histogram and those of the Go runtime.
var figures = [...]Figure{
	{"holdfast_build_info", false, []string{"version", "revision"}, Built, "Always 1; which release it is."},

	{"holdfast_job_start_timestamp_seconds", false, []string{"operation"}, Jobs, "When the job began last."},
	{"holdfast_job_end_timestamp_seconds", false, []string{"operation"}, Jobs, "When the job ended last."},
	{"holdfast_job_duration_seconds", false, []string{"operation"}, Jobs, "How long its last run took."},
	{"holdfast_job_succeeded", false, []string{"operation"}, Jobs, "1 where its last run did what it was to do, 0 where it failed. That wal-verify found a WARNING is no failure."},
	{"holdfast_job_exit_status", false, []string{"operation"}, Jobs, "What its last run ended with. That of backup-push is 3 where a backup was made and has pages that were corrupt already."},
	{"holdfast_job_peak_memory_bytes", false, []string{"operation"}, Jobs, "The most memory that its last run had at once."},
	{"holdfast_job_last_success_timestamp_seconds", false, []string{"operation"}, Jobs, "When it ended last having done what it was to do. A run that fails leaves this and what follows as they are."},
	{"holdfast_job_last_success_read_bytes", false, []string{"operation"}, Jobs, "What that run read: of the data directory for a backup, from the store for the others."},
	{"holdfast_job_last_success_stored_bytes", false, []string{"operation"}, Jobs, "What that run gave to the store, compressed and encrypted."},
	{"holdfast_job_last_success_bytes_per_second", false, []string{"operation"}, Jobs, "What that run read, over its whole duration."},
	{"holdfast_job_last_success_phase_seconds", false, []string{"operation", "phase"}, Jobs, "How long each phase of that run took."},

	{"holdfast_archive_up", false, nil, Holding, "1 where the archive could be looked at just now, 0 where not: what else is said of it is then of the last time, or not there."},
	{"holdfast_archive_looked_timestamp_seconds", false, nil, Holding, "When the archive was looked at last."},
	{"holdfast_archive_look_duration_seconds", false, nil, Holding, "How long that took."},
	{"holdfast_archive_look_errors_total", true, nil, Holding, "How often this process could not look at it."},
	{"holdfast_storage_up", false, []string{"storage"}, Holding, "1 where the storage answers."},
	{"holdfast_storage_latency_seconds", false, []string{"storage"}, Holding, "How long it took to answer whether an object is there."},
	{"holdfast_backups", false, []string{"kind"}, Holding, "Backups that are there: full, merged (full, put together from others) or delta."},
	{"holdfast_backups_damaged", false, nil, Holding, "Backups of which `verify` found some part damaged."},
	{"holdfast_backups_condemned", false, nil, Holding, "Backups that retention removes when their time has come."},
	{"holdfast_last_backup_timestamp_seconds", false, []string{"kind"}, Holding, "When the newest backup was finished, of those that are not known to be broken."},
	{"holdfast_last_backup_age_seconds", false, []string{"kind"}, Holding, "How long ago that is."},
	{"holdfast_last_verified_timestamp_seconds", false, nil, Holding, "When all of a backup was last read and found good."},
	{"holdfast_last_proven_timestamp_seconds", false, nil, Holding, "When a restore of a backup was last proven: restored, started, queried."},
	{"holdfast_last_proof_failed_timestamp_seconds", false, nil, Holding, "When such a proof last failed, where no later one of the same backup went well."},
	{"holdfast_wal_last_archived_timestamp_seconds", false, nil, Holding, "When the newest segment of WAL was archived, on whatever timeline."},
	{"holdfast_wal_last_archived_age_seconds", false, nil, Holding, "How long ago that is. A server that writes nothing archives nothing either, unless archive_timeout is set."},
	{"holdfast_restorable_until_timestamp_seconds", false, nil, Holding, "The newest moment that can be restored; 0 where none can."},
	{"holdfast_restorable_from_timestamp_seconds", false, nil, Holding, "The oldest moment from which on all moments up to that one can be restored."},
	{"holdfast_restorable_age_seconds", false, nil, Holding, "How long ago the newest moment is that can be restored: what would be lost now."},
	{"holdfast_restorable_window_seconds", false, nil, Holding, "How long the time is of which any moment can be restored."},
	{"holdfast_ribbon_status", false, nil, Holding, "What `ribbon --check` ends with: 0 OK, 1 WARNING, 2 FAILURE."},
	{"holdfast_ribbon_holes", false, nil, Holding, "Stretches along the cluster's timeline that cannot be restored."},
	{"holdfast_ribbon_missing_segments", false, nil, Holding, "Segments that are missing or damaged in these."},
	{"holdfast_ribbon_unknown", false, nil, Holding, "Stretches along the cluster's timeline of which it is not known whether they can be."},
	{"holdfast_wal_ready_segments", false, nil, Holding, "Segments of this host's server that wait to be archived."},
	{"holdfast_wal_ready_bytes", false, nil, Holding, "Bytes of these."},
	{"holdfast_wal_ready_since_timestamp_seconds", false, nil, Holding, "When the oldest of these was finished; not there where none waits."},
	{"holdfast_wal_free_bytes", false, nil, Holding, "Bytes that are free where this host's server writes its WAL."},

	{"holdfast_lease_holder", false, []string{"operation", "holder"}, Holding, "Always 1; which host has the lease of a job, of the jobs whose lease somebody has."},

	{"holdfast_agent_slot_next_timestamp_seconds", false, []string{"schedule"}, Agents, "When something of the schedule is due next."},
	{"holdfast_agent_slot_last_done_timestamp_seconds", false, []string{"schedule"}, Agents, "When the newest was due of what is known to be done, on whatever host."},
	{"holdfast_agent_slot_running", false, []string{"schedule"}, Agents, "1 while this agent has a process at work on it."},
	{"holdfast_agent_slots_missed_total", true, []string{"schedule"}, Agents, "How often it was not done before its time was over, on whatever host, as far as this agent knows."},
	{"holdfast_agent_service_up", false, []string{"service"}, Agents, "1 while the daemon, or wal-receive, runs."},
	{"holdfast_agent_service_restarts_total", true, []string{"service"}, Agents, "How often it had to be started again."},

	{"holdfast_store_requests_total", true, []string{"operation"}, Storing, "Calls of the store that have ended: open, put, stat, list, delete, copy. What is tried again within one of them counts once, but for directories."},
	{"holdfast_store_errors_total", true, []string{"operation"}, Storing, "Those that failed. That an object is missing, or there already, is an answer and no failure."},
	{"holdfast_store_retries_total", true, nil, Storing, "What was tried again since it had failed for a reason that may pass: requests, of which a call may be several; calls for directories."},
	{"holdfast_store_requests_running", false, []string{"operation"}, Storing, "Calls that have not ended."},
	{"holdfast_store_objects_total", true, []string{"operation"}, Storing, "Objects that the calls were about."},
	{"holdfast_store_received_bytes_total", true, nil, Storing, "Bytes read from the store."},
	{"holdfast_store_sent_bytes_total", true, nil, Storing, "Bytes given to the store, those of failed calls included."},

	{"walg_backups", false, []string{"backup_type"}, Exposed, "Backups: full or delta."},
	{"walg_backup_info", false, []string{"backup_name", "backup_type", "wal_file", "pg_version", "start_lsn", "finish_lsn", "is_permanent", "delta_origin"}, Exposed, "Always 1; what there is to say of each backup."},
	{"walg_backup_start_timestamp", false, []string{"backup_name"}, Exposed, "When it was begun."},
	{"walg_backup_finish_timestamp", false, []string{"backup_name"}, Exposed, "When it was finished."},
	{"walg_backup_uncompressed_size_bytes", false, []string{"backup_name"}, Exposed, "Its size as files."},
	{"walg_backup_compressed_size_bytes", false, []string{"backup_name"}, Exposed, "Its size as stored."},
	{"walg_pitr_window_seconds", false, nil, Exposed, "As holdfast_restorable_window_seconds."},
	{"walg_wal_verify_status", false, []string{"operation"}, Exposed, "What `wal-verify` says by integrity and timeline: 1 OK, 0 FAILURE, 2 WARNING, -1 not known, as where no server is to be asked."},
	{"walg_wal_integrity_status", false, []string{"timeline_id", "timeline_hex"}, Exposed, "1 where no segment of the timeline is lost, 0 where one is."},
	{"walg_storage_up", false, nil, Exposed, "1 where all storages answer."},
	{"walg_storage_latency_seconds", false, nil, Exposed, "The slowest storage's holdfast_storage_latency_seconds."},
	{"walg_backup_list_duration_seconds", false, nil, Exposed, "As holdfast_archive_look_duration_seconds."},
	{"walg_wal_verify_duration_seconds", false, nil, Exposed, "How long `wal-verify` took."},
	{"walg_scrape_errors_total", true, nil, Exposed, "As holdfast_archive_look_errors_total."},
	{"walg_errors_total", true, []string{"operation", "error_type"}, Exposed, "Failed calls of the store by operation; the type is always `storage`."},
}

// histogram is the one that there is.
var histogram = Figure{"holdfast_store_request_duration_seconds", false, []string{"operation"}, Storing,
	"How long calls of the store took: those of open until the body was closed, those of list with what was done with the entries. A histogram."}

// Figures returns all metrics of ours, by section.
func Figures() []Figure { return append(figures[:len(figures):len(figures)], histogram) }

// Sample is the value of a figure.
type Sample struct {
	Name   string
	Labels []string // values, in the order of the figure's labels
	Value  float64
}

// desc describes f to Prometheus.
func (f *Figure) desc() *prometheus.Desc { return prometheus.NewDesc(f.Name, f.Help, f.Labels, nil) }

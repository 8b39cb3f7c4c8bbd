package metrics

import "time"

// Agent is what an agent has to do, at one moment.
type Agent struct {
	Jobs     []Scheduled
	Services []Service
}

// Scheduled is a job of its schedule.
type Scheduled struct {
	Name     string    // such as backup
	Next     time.Time // its next slot; zero where there is none
	LastDone time.Time // the newest slot that is done, on whatever host; zero is not known
	Running  bool      // here
	Missed   int       // slots that nobody has done, as far as this agent knows
}

// Service is what it keeps running.
type Service struct {
	Name     string
	Up       bool
	Restarts int
}

// samples returns what there is to tell of a.
func (a Agent) samples() (all []Sample) {
	for _, j := range a.Jobs {
		of := []string{j.Name}
		if !j.Next.IsZero() {
			all = append(all, Sample{"holdfast_agent_slot_next_timestamp_seconds", of, seconds(j.Next)})
		}
		if !j.LastDone.IsZero() {
			all = append(all, Sample{"holdfast_agent_slot_last_done_timestamp_seconds", of, seconds(j.LastDone)})
		}
		all = append(all, Sample{"holdfast_agent_slot_running", of, one(j.Running)}, Sample{"holdfast_agent_slots_missed_total", of, float64(j.Missed)})
	}
	for _, s := range a.Services {
		of := []string{s.Name}
		all = append(all, Sample{"holdfast_agent_service_up", of, one(s.Up)}, Sample{"holdfast_agent_service_restarts_total", of, float64(s.Restarts)})
	}
	return all
}

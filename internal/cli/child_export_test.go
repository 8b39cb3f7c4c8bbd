package cli

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"holdfast/internal/agent"
	"holdfast/internal/config"
	"holdfast/internal/metrics"
	"holdfast/internal/notify"
)

// TellsAgain returns what tells people of slots as an agent with these settings does, until ctx is over.
func TellsAgain(ctx context.Context, s *config.Settings, clock agent.Clock) (tell func(context.Context, agent.Notice)) {
	g := &agency{app: &app{log: slog.New(slog.DiscardHandler)}, clock: clock, settings: s, unheard: map[string]notify.Event{}}
	g.recall(s)
	go g.tellAgain(ctx)
	return (&worker{agency: g, settings: s, commands: map[string][]string{"backup": {"backup-push"}}}).tell
}

// Said is what a child says became of it in a line; the outcome is "" where the line says something else.
func Said(line []byte) (outcome agent.Outcome, host string, claimed bool, err error) {
	s, err := parseSaid(line)
	if s.End != nil {
		outcome, host, claimed = s.End.Outcome, s.End.Host, s.End.Claimed
	}
	return outcome, host, claimed, err
}

// SayAgain writes what a child said.
func SayAgain(line []byte) ([]byte, error) {
	s, err := parseSaid(line)
	if err != nil {
		return nil, err
	}
	return json.Marshal(s)
}

// ArchiveFacts is archiveFacts.
var ArchiveFacts = archiveFacts

// MovesMetrics has an agent that serves metrics at from serve them where to says, and returns where it served them, where it is to, and where it is asked then; "" for nowhere.
func MovesMetrics(at string, where func(from string) string) (from, to, after string, err error) {
	g := &agency{app: &app{log: slog.New(slog.DiscardHandler)}, figures: metrics.New(metrics.Options{})}
	if g.web, err = g.listen(at); err != nil {
		return "", "", "", err
	}
	from = g.web.address
	w, err := g.listenInstead(where(from))
	if w != nil {
		to = w.address
		err = errors.Join(err, g.web.close())
		g.serves(w)
	}
	answer, asked := http.Get("http://" + g.web.address + "/metrics")
	if asked == nil {
		after = g.web.address
		asked = answer.Body.Close()
	}
	return from, to, after, errors.Join(err, asked, g.web.close())
}

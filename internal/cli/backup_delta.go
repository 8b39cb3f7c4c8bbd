package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"

	"holdfast/internal/backup"
	"holdfast/internal/config"
)

// deltaFlags are the flags of backup-push that say what a backup builds on.
type deltaFlags struct {
	full           bool
	name, userData string
}

func (d *deltaFlags) add(f *pflag.FlagSet) {
	f.BoolVarP(&d.full, "full", "f", false, "take a full backup, also where deltas are enabled")
	f.StringVar(&d.name, "delta-from-name", "", "build on the backup of that `name`")
	f.StringVar(&d.userData, "delta-from-user-data", "", "build on the newest backup with that user data, JSON")
}

// options joins flags and settings. A flag wins over either of the settings.
func (d *deltaFlags) options(s config.Delta) (backup.Delta, error) {
	o := deltaSource(s)
	o.Full, o.MaxSteps, o.OnFull, o.Name, o.UserData = d.full, s.MaxSteps, s.Origin == "LATEST_FULL", s.Name, s.UserData
	if d.name != "" || d.userData != "" {
		o.Name, o.UserData = d.name, nil
	}
	if d.userData != "" {
		if !json.Valid([]byte(d.userData)) {
			return o, fmt.Errorf(`--delta-from-user-data %s: want JSON, such as {"ticket":7} or "text" with its quotes`, d.userData)
		}
		o.UserData = json.RawMessage(d.userData)
	}
	switch {
	case o.Name != "" && o.UserData != nil:
		return o, errors.New("a backup to build on is given by name and by user data: give one of them")
	case d.full && (d.name != "" || d.userData != ""):
		return o, errors.New("--full builds on nothing: leave it away, or the backup to build on")
	}
	return o, nil
}

// deltaSource says how what has changed is found.
func deltaSource(s config.Delta) backup.Delta {
	o := backup.Delta{Source: backup.Source(s.Source), Force: s.Force, Sample: s.Sample}
	if s.Source == "auto" {
		o.Source = backup.Auto
	}
	return o
}

// deltaWords says in a few lines what a delta is made of.
func deltaWords(r *backup.Report) []string {
	d := r.Delta
	if d == nil {
		return nil
	}
	unchanged := ""
	if d.Parent != "" {
		unchanged = fmt.Sprintf(", %s unchanged since %s", humanize.Comma(d.Unchanged), d.Parent)
	}
	words := []string{fmt.Sprintf("%s files whole, %s in part with %s pages%s; %s read",
		humanize.Comma(d.Whole), humanize.Comma(d.Incremental), humanize.Comma(d.Pages), unchanged, humanize.IBytes(uint64(r.BytesRead)))}
	if len(d.Missed) > 0 {
		relations := make([]string, len(d.Missed))
		for i, m := range d.Missed {
			relations[i], _, _ = strings.Cut(m, " ")
		}
		words = append(words, fmt.Sprintf("of %s sampled blocks %d had changed unnoticed: %s. These relations were read as a whole",
			humanize.Comma(d.Sampled), len(d.Missed), strings.Join(slices.Compact(relations), ", ")))
	}
	return words
}

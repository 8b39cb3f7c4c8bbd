package cli

import (
	"holdfast/internal/config"
	"holdfast/internal/pgbackrest"
)

// TheirLocation says where a configuration file of pgBackRest leads.
func TheirLocation(file string) (string, error) {
	var s pgbackrest.Settings
	if err := s.ReadFile("pgbackrest.conf", []byte(file)); err != nil {
		return "", err
	}
	r := s.Repo("main", 1)
	ours, err := config.Load(config.Sources{})
	if err != nil {
		return "", err
	}
	st := storageOf(ours, r)
	return st.Location(), r.Check()
}

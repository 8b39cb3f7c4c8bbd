package cli_test

import (
	"testing"

	"holdfast/internal/cli"
)

// A password in a connection string is seen however it is written, and what the environment has is not taken for one.
func TestPlainConninfo(t *testing.T) {
	t.Setenv("PGPASSWORD", "postgres")
	for text, want := range map[string]bool{
		"host=db1 user=replicator": true, "host=db1 user=postgres": true, "postgres://replicator@db1/?sslmode=require": true, "postgresql:///?host=/run&user=postgres": true,
		"host=db1 password=sesame": false, `host=db1 password = 'it\'s'`: false, "password='' host=db1 password=x": false, "password=postgres": false,
		"postgres://replicator:sesame@db1": false, "postgres://replicator:p%40ss@db1": false, "postgres://db1/?user=a&password=b": false, "postgres://db1/?pass%77ord=b": false,
		"host=db1 sslpassword=x": false, "postgres://db1/?sslpassword=b": false, "host=": true, "db1": false, "postgres://%zz": false,
	} {
		if got := cli.PlainConninfo(text); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}

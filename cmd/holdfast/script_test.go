package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// $HOME, which testscript sets, stands for the account's home directory, so that settings of whoever tests are not read.
	testscript.Main(m, map[string]func(){"holdfast": func() { os.Exit(runAt(os.Getenv("HOME"))) }})
}

// What an operator can type, one behaviour in each file. testdata/fixture makes the archives and WAL files they use.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", RequireUniqueNames: true, Setup: func(env *testscript.Env) error {
		home := env.WorkDir + "/home"
		env.Setenv("HOME", home)
		if err := os.CopyFS(env.WorkDir, os.DirFS("testdata/fixture")); err != nil {
			return err
		}
		return os.MkdirAll(home, 0o755)
	}})
}

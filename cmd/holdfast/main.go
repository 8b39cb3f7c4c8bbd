// Command holdfast archives PostgreSQL's WAL, takes base backups and restores to any moment.
package main

import (
	"os"
	"os/user"
	_ "time/tzdata" // zones of schedules, on hosts that know none

	"golang.org/x/term"

	"holdfast/internal/cli"
)

func main() { os.Exit(run()) }

func run() int { return runAt(home()) }

// home returns the home directory of the account that runs this, as WAL-G from the account rather than from $HOME; "" when
// there is none.
func home() string {
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	dir, _ := os.UserHomeDir() // "" with the error
	return dir
}

// runAt runs the command line of this process for an account whose home directory is home.
func runAt(home string) int {
	env := cli.Env{
		Args: os.Args[1:], Environ: os.Environ(), Home: home, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Live: term.IsTerminal(int(os.Stderr.Fd())),
	}
	// What cannot be found out is empty; commands that need it say so.
	env.Dir, _ = os.Getwd()
	env.Program, _ = os.Executable()
	return cli.Run(env)
}

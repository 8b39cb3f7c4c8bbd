// Command holdfast archives PostgreSQL's WAL, takes base backups and restores to any moment.
package main

import (
	"os"
	"os/user"

	"golang.org/x/term"

	"holdfast/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	env := cli.Env{
		Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Live: term.IsTerminal(int(os.Stderr.Fd())),
	}
	// What cannot be found out is empty; commands that need it say so.
	env.Home, _ = os.UserHomeDir()
	if u, err := user.Current(); err == nil {
		env.Home = u.HomeDir // as WAL-G: from the account, not from $HOME
	}
	env.Dir, _ = os.Getwd()
	env.Program, _ = os.Executable()
	return cli.Run(env)
}

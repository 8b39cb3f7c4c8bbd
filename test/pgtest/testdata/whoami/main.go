// Command whoami writes a file into the directory it is given and prints its user id.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := os.WriteFile(filepath.Join(os.Args[1], "written"), nil, 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(os.Geteuid())
}

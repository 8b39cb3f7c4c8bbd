package check

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// stopped is the state of a process that somebody has stopped.
const stopped = "stopped by a signal"

// maxProc bounds what is read of a file below /proc, in bytes.
const maxProc = 4 << 20

// findProcess returns a process that has the name of a file among its arguments; nil where none is seen. Of several it is Holdfast rather than
// the shell that started it.
func findProcess(name string) *Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found *Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		args := strings.Split(strings.TrimRight(string(readProc(pid, "cmdline")), "\x00"), "\x00")
		if strings.HasPrefix(args[0], "postgres:") || !slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, name) }) {
			continue
		}
		ours := call{words: args}.program() == 0
		if found == nil || ours {
			found = &Process{PID: pid, Command: filepath.Base(args[0])}
			if slices.Contains(args, "wal-push") {
				found.Command += " wal-push"
			}
		}
		if ours {
			break
		}
	}
	if found != nil {
		found.State = processState(readProc(found.PID, "stat"))
		found.Waits = waitsFor(found.PID)
	}
	return found
}

// readProc reads a file of a process; nothing where it cannot be read.
func readProc(pid int, name string) []byte {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil
	}
	defer f.Close() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxProc))
	if err != nil {
		return nil
	}
	return b
}

// processState returns the state that /proc/PID/stat tells, in words (proc_pid_stat(5)).
func processState(stat []byte) string {
	at := bytes.LastIndexByte(stat, ')') // the name of the program may have anything in it
	if at < 0 || at+2 >= len(stat) {
		return "gone"
	}
	words := map[byte]string{'R': "running", 'S': "sleeping", 'D': "waiting for a disk", 'T': stopped, 't': "stopped by a debugger", 'Z': "dead", 'X': "dead", 'I': "idle"}
	if w := words[stat[at+2]]; w != "" {
		return w
	}
	return "in state " + strconv.QuoteRune(rune(stat[at+2]))
}

// waitsFor says what a process waits for: who is at the other end of its connections, else where in the kernel it sleeps.
func waitsFor(pid int) string {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err == nil {
		inodes := map[string]bool{}
		for _, fd := range fds {
			to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
			if inode, ok := strings.CutPrefix(to, "socket:["); err == nil && ok {
				inodes[strings.TrimSuffix(inode, "]")] = true
			}
		}
		var peers []string
		for _, table := range []string{"net/tcp", "net/tcp6"} {
			peers = append(peers, connections(readProc(pid, table), inodes)...)
		}
		slices.Sort(peers)
		if peers = slices.Compact(peers); len(peers) > 0 {
			return strings.Join(peers[:min(len(peers), 4)], ", ")
		}
	}
	if where := string(readProc(pid, "wchan")); where != "" && where != "0" {
		return "the kernel in " + where
	}
	return ""
}

// connections returns the other ends of those connections in a table such as /proc/net/tcp that have one of the inodes.
func connections(table []byte, inodes map[string]bool) (peers []string) {
	lines := bufio.NewScanner(bytes.NewReader(table))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || !inodes[f[9]] {
			continue
		}
		peer, ok := parsePeer(f[2])
		switch {
		case !ok:
		case f[3] == "01": // TCP_ESTABLISHED
			peers = append(peers, "an answer of "+peer.String())
		case f[3] == "02": // TCP_SYN_SENT
			peers = append(peers, "a connection to "+peer.String())
		}
	}
	return peers
}

// parsePeer reads an address as the kernel prints it: words of 32 bits in the order of this machine's bytes, in hexadecimal, and the port.
func parsePeer(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}

package check_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"holdfast/internal/check"
)

// A process that has a file's name among its arguments is found, with its state.
func TestFindProcess(t *testing.T) {
	const name = "00000001000000AB000000CD"
	cmd := exec.Command("sh", "-c", "kill -STOP $$; exit 0", name)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		p := check.FindProcess(name)
		if p != nil && p.PID == cmd.Process.Pid && p.Command == "sh" && p.State == "stopped by a signal" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", p)
		}
	}
	if p := check.FindProcess("00000001000000AB000000CE"); p != nil {
		t.Errorf("of a file that nobody is at work on: %+v", p)
	}
}

// What a process waits for is who is at the other end of its connection.
func TestWaitsFor(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, want := check.WaitsFor(os.Getpid()), "an answer of "+listener.Addr().String(); !strings.Contains(got, want) {
		t.Errorf("%q does not say %q", got, want)
	}
}

func TestParsePeer(t *testing.T) {
	for text, want := range map[string]string{
		"0100007F:01BB":                         "127.0.0.1:443",
		"0000000000000000FFFF0000010200C0:1538": "192.0.2.1:5432",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"":                                      "",
		"0100007F":                              "",
		"0100007:0050":                          "",
		"0100007F00:0050":                       "",
		"0100007F:10000":                        "",
	} {
		got, ok := check.ParsePeer(text)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %s, %t; want %q", text, got, ok, want)
		}
	}
}

func FuzzConnections(f *testing.F) {
	f.Add([]byte("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 0100007F:1538 0100007F:01BB 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000\n"))
	f.Add([]byte("x\n\n 0 0 : 02 0 0 0 0 0 4242"))
	f.Fuzz(func(t *testing.T, table []byte) {
		for _, peer := range check.Connections(table, map[string]bool{"4242": true}) {
			if !strings.HasPrefix(peer, "an answer of ") && !strings.HasPrefix(peer, "a connection to ") {
				t.Errorf("%q", peer)
			}
		}
	})
}

// Command swiftd ADDRESS is an OpenStack Swift that keeps objects in its memory, for tests. User, key and account are swifttest.
//
// It is the server of the client library's tests, with what Swift has and that lacks: answers to ranges say which they are, and
// "If-None-Match: *" keeps a put from replacing an object.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"sync"

	"github.com/ncw/swift/v2/swifttest"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: swiftd ADDRESS")
		os.Exit(2)
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "swiftd:", err)
		os.Exit(1)
	}
}

func serve(address string) error {
	server, err := swifttest.NewSwiftServer("127.0.0.1")
	if err != nil {
		return err
	}
	behind, err := url.Parse(server.URL)
	if err != nil {
		return err
	}
	server.URL = "http://" + address + behind.Path // where logging in sends clients
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	f := &front{behind: behind.Host}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", f.behind },
		ModifyResponse: say,
		ErrorLog:       log.New(os.Stderr, "", 0),
	}
	return http.Serve(l, f)
}

// front stands before the server.
type front struct {
	behind string
	proxy  *httputil.ReverseProxy
	puts   sync.Mutex // one put on condition at a time
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == http.MethodPut && r.Header.Get("If-None-Match") == "*":
		f.puts.Lock()
		defer f.puts.Unlock()
		if _, there := f.size(r); there {
			http.Error(w, "there is one", http.StatusPreconditionFailed)
			return
		}
	case r.Method == http.MethodGet && r.Header.Get("Range") != "":
		if size, there := f.size(r); there {
			from, to, ok := parseRange(r.Header.Get("Range"), size)
			if !ok {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
				http.Error(w, "nothing is there", http.StatusRequestedRangeNotSatisfiable)
				return
			}
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to))
			r.Header.Set(answer, fmt.Sprintf("bytes %d-%d/%d", from, to, size))
		}
	}
	f.proxy.ServeHTTP(w, r)
}

// size returns the size of the object that r is about, and whether it is there.
func (f *front) size(r *http.Request) (int64, bool) {
	head, err := http.NewRequestWithContext(r.Context(), http.MethodHead, "http://"+f.behind+r.URL.RequestURI(), nil)
	if err != nil {
		return 0, false
	}
	head.Header.Set("X-Auth-Token", r.Header.Get("X-Auth-Token"))
	resp, err := http.DefaultClient.Do(head)
	if err != nil {
		return 0, false
	}
	resp.Body.Close() // has none
	return resp.ContentLength, resp.StatusCode == http.StatusOK
}

var ranges = regexp.MustCompile(`^bytes=([0-9]+)-([0-9]*)$`)

// parseRange returns the first and last byte of an object of size bytes that a Range asks for, and whether there is any.
func parseRange(text string, size int64) (from, to int64, ok bool) {
	m := ranges.FindStringSubmatch(text)
	if m == nil {
		return 0, 0, false
	}
	from, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || from >= size {
		return 0, 0, false
	}
	to = size - 1
	if m[2] != "" {
		end, err := strconv.ParseInt(m[2], 10, 64)
		if err != nil || end < from {
			return 0, 0, false
		}
		to = min(to, end)
	}
	return from, to, true
}

// answer is a header of ours: what the answer to a range says of itself.
const answer = "X-Holdfast-Content-Range"

// say makes the answer to a range one.
func say(resp *http.Response) error {
	if r := resp.Request.Header.Get(answer); r != "" && resp.StatusCode == http.StatusOK {
		resp.StatusCode, resp.Status = http.StatusPartialContent, ""
		resp.Header.Set("Content-Range", r)
	}
	return nil
}

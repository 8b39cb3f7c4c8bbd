package main

import (
	"syscall"
	"unsafe"

	"holdfast/internal/daemon/wire"
)

// Go's runtime takes most of a millisecond to start: threads, a heap, 65 signals. A call that goes well needs nothing of it, and as PostgreSQL makes one for
// each segment, quick does those before it starts. What is in any way out of the ordinary it leaves to main.
//
// It runs on the stack that the kernel gave the process, without goroutine, heap and runtime: only functions marked nosplit, which do not allocate, index nothing
// unchecked, and store no pointers in variables. `go build` without -ldflags "-E main.entry" makes a program that begins with main, and does the same.

// entry is in entry_linux_amd64.s.
func entry()

// What quick leaves to main, and works with.
var (
	asked   int32    // 1 more than the connection on which the daemon was asked and has not answered yet; 0 for none
	local   [16]byte // what stands for the storage of a thread
	message struct {
		n     int // bytes; more than there is room for when it was not enough
		bytes [2 * syscall.PathMax]byte
	}
)

// taken returns the connection on which quick has asked.
func taken() (conn, bool) { return conn(asked - 1), asked > 0 }

// quick asks the daemon and ends the process, where all goes well. stack has argc and the arguments.
//
//go:nosplit
func quick(stack unsafe.Pointer) {
	argc := *(*int)(stack)
	socket, command, first, second := argument(stack, 1), argument(stack, 2), argument(stack, 3), argument(stack, 4)
	put(byte(wire.Hello))
	put2(4)
	put(wire.Version)
	switch {
	case argc == 3 && equal(command, "check"):
		put(byte(wire.Check))
		put2(3)
	case argc == 4 && equal(command, "wal-push") && has(first, '/'):
		put(byte(wire.Push))
		at := message.n
		put2(0)
		putAbsolute(first)
		set2(at, message.n-at+1)
	case argc == 5 && equal(command, "wal-fetch"):
		put(byte(wire.Fetch))
		at := message.n
		put2(0)
		put(2)
		put2(length(first))
		putAll(first)
		inner := message.n
		put2(0)
		putAbsolute(second)
		set2(inner, message.n-inner-2)
		set2(at, message.n-at+1)
	default:
		return
	}
	if message.n > len(message.bytes) {
		return
	}
	fd := reach(socket)
	if fd < 0 {
		return
	}
	n, _, failed := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&message.bytes)), uintptr(message.n), syscall.MSG_NOSIGNAL, 0, 0)
	if failed != 0 || int(n) != message.n {
		syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0)
		return
	}
	asked = int32(fd) + 1
	var answer [3]byte
	n, _, failed = syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&answer)), 3, syscall.MSG_PEEK, 0, 0) // main reads it again
	if failed == 0 && n == 3 && answer == [3]byte{byte(wire.OK), 0, 3} {
		// To a daemon that waits for more an end with something unread would be a reset.
		syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&answer)), 3, 0, 0, 0)
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// reach does what connect does, and returns a negative number where that is not to be had at once.
//
//go:nosplit
func reach(socket *byte) int {
	var address struct {
		family uint16
		path   [108]byte
	}
	address.family = syscall.AF_UNIX
	n := 0
	for ; n < len(address.path) && byteAt(socket, n) != 0; n++ {
		address.path[n] = byteAt(socket, n)
	}
	if n == 0 || n == len(address.path) || address.path[0] == '-' || address.path[0] == '@' { // a flag, or an address without a file
		return -1
	}
	fd, _, failed := syscall.RawSyscall(syscall.SYS_SOCKET, syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if failed != 0 {
		return -1
	}
	// Until there is a sign of life from a daemon at work. It may take longer: main knows how long.
	limit := syscall.Timeval{Sec: int64(wire.Alive / 1e9)}
	for option := uintptr(syscall.SO_RCVTIMEO); option <= syscall.SO_SNDTIMEO && failed == 0; option++ {
		_, _, failed = syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, fd, syscall.SOL_SOCKET, option, uintptr(unsafe.Pointer(&limit)), unsafe.Sizeof(limit), 0)
	}
	if failed == 0 {
		_, _, failed = syscall.RawSyscall(syscall.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&address)), uintptr(2+n+1))
	}
	var peer syscall.Ucred
	size := uint32(unsafe.Sizeof(peer))
	if failed == 0 {
		_, _, failed = syscall.RawSyscall6(syscall.SYS_GETSOCKOPT, fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED, uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)), 0)
	}
	self, _, _ := syscall.RawSyscall(syscall.SYS_GETEUID, 0, 0, 0)
	if failed != 0 || self != 0 && uint32(self) != peer.Uid && peer.Uid != 0 {
		syscall.RawSyscall(syscall.SYS_CLOSE, fd, 0, 0)
		return -1
	}
	return int(fd)
}

// argument returns the i-th argument, the program's name being the 0-th. Behind the last there is nil, and then the environment.
//
//go:nosplit
func argument(stack unsafe.Pointer, i int) *byte {
	if i >= *(*int)(stack) {
		return nil
	}
	return *(**byte)(unsafe.Add(stack, 8*(1+i)))
}

// byteAt returns the i-th byte of a string that ends in 0, which has to be as long; 0 of nil.
//
//go:nosplit
func byteAt(s *byte, i int) byte {
	if s == nil {
		return 0
	}
	return *(*byte)(unsafe.Add(unsafe.Pointer(s), i))
}

//go:nosplit
func length(s *byte) (n int) {
	for byteAt(s, n) != 0 {
		n++
	}
	return n
}

//go:nosplit
func has(s *byte, c byte) bool {
	for i := 0; byteAt(s, i) != 0; i++ {
		if byteAt(s, i) == c {
			return true
		}
	}
	return false
}

//go:nosplit
func equal(s *byte, want string) bool {
	for i := range len(want) {
		if byteAt(s, i) != want[i] { // at the end of s, too
			return false
		}
	}
	return byteAt(s, len(want)) == 0
}

// put appends to the message.
//
//go:nosplit
func put(b byte) {
	set(message.n, b)
	message.n++
}

// set puts a byte where there is room.
//
//go:nosplit
func set(at int, b byte) {
	if at >= 0 && at < len(message.bytes) {
		message.bytes[at] = b
	}
}

// put2 appends a length.
//
//go:nosplit
func put2(n int) {
	put(byte(n >> 8))
	put(byte(n))
}

// set2 puts a length where one was left out.
//
//go:nosplit
func set2(at, n int) {
	set(at, byte(n>>8))
	set(at+1, byte(n))
}

//go:nosplit
func putAll(s *byte) {
	for i := 0; byteAt(s, i) != 0; i++ {
		put(byteAt(s, i))
	}
}

// putAbsolute appends a path from the root on. Where there is none the message is too long from then on.
//
//go:nosplit
func putAbsolute(path *byte) {
	if first := byteAt(path, 0); first == '/' {
		putAll(path)
		return
	} else if first == 0 || message.n < 0 || message.n >= len(message.bytes) {
		message.n = len(message.bytes) + 1
		return
	}
	at := message.n
	n, _, failed := syscall.RawSyscall(syscall.SYS_GETCWD, uintptr(unsafe.Pointer(&message.bytes[at])), uintptr(len(message.bytes)-at), 0)
	if failed != 0 || n < 2 || message.bytes[at] != '/' { // such as (unreachable)
		message.n = len(message.bytes) + 1
		return
	}
	message.n += int(n) - 1 // with the 0 at its end
	put('/')
	putAll(path)
}

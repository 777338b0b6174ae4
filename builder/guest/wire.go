package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The tool and the sandbox's first process talk over one stream socket. A message is a length (4 bytes, big endian) and that
// many bytes: lists of strings, which may hold any byte, since paths, arguments and variables may. File descriptors travel
// with the length.
const maxMessage = 64 << 20

// pack encodes lists of strings: each list is its number of strings, then each string's length and bytes, as uvarints.
func pack(lists ...[]string) []byte {
	b := make([]byte, 4, 512)
	for _, list := range lists {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, s := range list {
			b = binary.AppendUvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

var errGarbled = errors.New("garbled message")

func unpack(b []byte) ([][]string, error) {
	var lists [][]string
	number := func() (int, error) {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) { // every string takes a byte or more
			return 0, errGarbled
		}
		b = b[size:]
		return int(n), nil
	}
	for len(b) > 0 {
		n, err := number()
		if err != nil {
			return nil, err
		}
		list := make([]string, n)
		for i := range list {
			size, err := number()
			if err != nil {
				return nil, err
			}
			list[i], b = string(b[:size]), b[size:]
		}
		lists = append(lists, list)
	}
	return lists, nil
}

// send writes one message made by pack.
func send(conn *os.File, msg []byte, fds ...int) error {
	if len(msg) > maxMessage {
		return fmt.Errorf("message of %d bytes: %w", len(msg), unix.E2BIG)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var sendErr error
	if err := raw.Write(func(fd uintptr) bool {
		for {
			n, sendErr = unix.SendmsgN(int(fd), msg, rights, nil, unix.MSG_NOSIGNAL)
			if sendErr != unix.EINTR {
				return sendErr != unix.EAGAIN
			}
		}
	}); err != nil {
		return err
	}
	if sendErr != nil {
		return sendErr
	}
	if n < len(msg) {
		_, err = conn.Write(msg[n:])
	}
	return err
}

// receive reads one message and the descriptors that came with it, which are the caller's to close.
func receive(conn *os.File) (lists [][]string, fds []int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var head [4]byte
	rights := make([]byte, unix.CmsgSpace(3*4))
	var n, nrights int
	var recvErr error
	if err := raw.Read(func(fd uintptr) bool {
		for {
			n, nrights, _, _, recvErr = unix.Recvmsg(int(fd), head[:], rights, unix.MSG_CMSG_CLOEXEC)
			if recvErr != unix.EINTR {
				return recvErr != unix.EAGAIN
			}
		}
	}); err != nil {
		return nil, nil, err
	}
	if recvErr != nil {
		return nil, nil, recvErr
	}
	if n == 0 {
		return nil, nil, io.EOF
	}
	if nrights > 0 {
		msgs, err := unix.ParseSocketControlMessage(rights[:nrights])
		if err != nil {
			return nil, nil, err
		}
		for _, m := range msgs {
			if got, err := unix.ParseUnixRights(&m); err == nil {
				fds = append(fds, got...)
			}
		}
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return nil, fds, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return nil, fds, errGarbled
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, fds, err
	}
	lists, err = unpack(body)
	return lists, fds, err
}

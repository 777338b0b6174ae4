package sandbox

import (
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func trueCommand() builder.Command {
	return builder.Command{Args: []string{"true"}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}
}

func BenchmarkStartTrueClose(b *testing.B) {
	spec := builder.Spec{Root: enginetest.NewRoot(b), Kernel: kernels.Kernel{Arch: enginetest.Arch()}, Scratch: []string{"/build"}}
	for b.Loop() {
		s, err := Engine{}.Start(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Run(b.Context(), trueCommand()); err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

func BenchmarkRun(b *testing.B) {
	spec := builder.Spec{Root: enginetest.NewRoot(b), Kernel: kernels.Kernel{Arch: enginetest.Arch()}, Scratch: []string{"/build"}}
	s, err := Engine{}.Start(b.Context(), spec)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		if err := s.Run(b.Context(), trueCommand()); err != nil {
			b.Fatal(err)
		}
	}
}

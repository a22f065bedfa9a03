import Commands
import Glibc

exit(await FtvmMain.run(Array(CommandLine.arguments.dropFirst())))

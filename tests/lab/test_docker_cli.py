"""The docker CLI says to arpanet's user what it says to the user of one engine.

One body, two backends: each scenario is run by a shell on c1, once against an engine that c1 has
for this test, once against three hosts. Exit codes, outputs and error words must be the same, line
by line, after normal() took out what must differ. What differs all the same stands in DIFFERENCES,
as the lines of a diff (- the engine, + arpanet), each with its reason; when such a difference is
gone its scenario fails too, and the entry can go.
"""

# ruff: noqa: E501 (commands and answers stand as they are)

from __future__ import annotations

import concurrent.futures
import difflib
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from lab import PATH, Lab, cached_images

CLIS = {"docker28": "/usr/local/bin/docker", "docker20": "/usr/bin/docker"}

# What a shell on c1 does with a scenario: each command's output, errors and exit code into files.
DRIVER = r"""
docker() { timeout -k 1 40 "$CLI" "$@"; }
arpanet_lines="$WORK/lines"
rm -rf "$WORK/out" "$WORK/cwd"; mkdir -p "$WORK/out" "$WORK/cwd"; cd "$WORK/cwd"
BEGAN=$(date +%s.%N)
n=100
while IFS= read -r line <&9; do
    { eval "$line"; } >"$WORK/out/$n.1" 2>"$WORK/out/$n.2" </dev/null
    echo "$?" >"$WORK/out/$n.3"
    n=$((n + 1))
done 9<"$arpanet_lines"
"""

SCENARIOS = {
    "run": """
        docker run --name aa busybox echo hello
        docker run --name aa busybox echo hello
        docker run --name bb busybox sh -c 'echo out; echo err >&2; exit 7'
        docker run --name cc busybox nosuchprogram
        docker run --name dd busybox /etc/passwd
        docker run --rm --name ee -e A=1 -w /tmp -u nobody busybox sh -c 'echo $A; pwd; id -un'
        echo piped | docker run --rm -i --name ff busybox cat
        docker run --rm --name gg --hostname box --add-host one:10.0.0.1 busybox sh -c 'hostname; grep one /etc/hosts'
        docker run --rm --name hh --read-only --tmpfs /t busybox sh -c 'touch /x; touch /t/x'
        docker run --rm --name ii --entrypoint echo busybox entry point
        docker run -d --name jj --label k=v busybox sleep 1000
        docker ps -a --format '{{.Names}} {{.Image}} {{.Command}} {{.Status}}'
        docker rm aa bb cc dd
        docker rm jj
        docker rm -f jj
        docker run --name kk nosuchimage
        docker run --name kk --memory 1 busybox true
        docker run --name kk --memory lots busybox true
        docker run --name kk --runtime nosuch busybox true
        docker run --name kk --nosuchflag busybox true
        docker run --name kk -p 99999:1 busybox true
        docker run --name kk -p xx:yy busybox true
        docker run --name kk --network nosuch busybox true
        docker rm kk
        docker run --name kk --volumes-from nosuch busybox true
        docker run --name kk --link nosuch busybox true
        docker run --name net --network container:nosuch busybox true
        docker rm net
        docker run --name kk -v relative/path:/x busybox true
        docker run --name kk -v /x:relative busybox true
        docker run --name kk --mount type=bind,source=/nosuch/dir,target=/x busybox true
        docker run --name kk -w relative busybox true
        docker run --name kk --restart sometimes busybox true
        docker run --name kk --rm --restart always busybox true
        docker rm kk
        docker run --name kk --ulimit nosuch=1 busybox true
        docker run --name kk --cap-add NOSUCH busybox true
        docker run --name kk --device /dev/nosuch busybox true
        docker rm kk
        docker run --name kk --ip 10.1.2.3 busybox true
        docker rm kk
        docker run --name kk --pull never nosuchimage
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker rm -f kk
    """,
    "create": """
        docker create --name aa busybox echo hi
        docker create --name aa busybox
        docker create --name ' ' busybox
        docker create --name aa/b busybox
        docker create --name -- busybox
        docker create --name xx busybox:nosuch
        docker create --name xx Busybox
        docker create --name xx
        docker create --name yy --cpus 100000 busybox
        docker create --name yy --memory 1k busybox
        docker create --name yy --memory 64m --memory-swap 32m busybox
        docker create --name yy --cpuset-cpus 999 busybox
        docker create --name yy --shm-size -1 busybox
        docker create --name yy -p 80:80:80:80 busybox
        docker create --name yy -p 0:99999 busybox
        docker create --name yy --expose xx busybox
        docker create --name yy --mac-address zz busybox
        docker create --name yy --network host --network-alias zz busybox
        docker create --name yy --pid container:nosuch busybox
        docker create --name yy --stop-signal NOSUCH busybox
        docker create --name yy --health-interval 1us --health-cmd true busybox
        docker create --name yy --isolation nosuch busybox
        docker create --name yy --platform nosuch/nosuch busybox
        docker create --name yy --storage-opt nosuch=1 busybox
        docker create --name yy --sysctl xx busybox
        docker create --name yy --security-opt nosuch=1 busybox
        docker create --name yy --env-file nosuch busybox
        docker create --name yy --oom-score-adj 5000 busybox
        docker create --name zz -it --cidfile cid busybox
        tr -d '[:xdigit:]' <cid | wc -c
        docker start -a aa
        docker start nosuch
        docker start aa nosuch
        docker wait aa
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker rm aa zz
        docker rm yy
        docker rm aa nosuch
    """,
    "stop": """
        docker run -d --name aa busybox sh -c 'trap "exit 3" TERM; trap "exit 5" USR2; while :; do sleep 0.1; done'
        docker stop aa
        docker stop aa
        docker wait aa
        docker start aa
        docker start aa
        docker restart -t 1 aa
        docker kill -s USR2 aa
        docker wait aa
        docker kill aa
        docker restart aa
        docker kill aa
        docker wait aa nosuch
        docker start aa
        docker pause aa
        docker pause aa
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker exec aa true
        docker stop -t 0 aa
        docker unpause aa
        docker pause aa
        docker start aa
        docker pause aa
        docker unpause aa nosuch
        docker kill -s NOSUCH aa
        docker kill -s 99 aa
        docker stop nosuch
        docker kill nosuch
        docker restart nosuch
        docker pause nosuch
        docker unpause nosuch
        docker wait nosuch
        docker stop
        docker rm nosuch
        docker rm -f nosuch
        docker rm aa
        docker rm -f aa
    """,
    "ps": """
        docker create --name one --label a=1 --label b=2 busybox sleep 1000
        docker run -d --name two --label a=2 -p 8081:80 --expose 90 busybox sleep 1000
        docker run --name three busybox sh -c 'exit 3'
        docker create --name four -v named:/v busybox true
        docker ps
        docker ps -a
        docker ps -aq --no-trunc
        docker ps -a --no-trunc --format '{{.ID}} {{.Names}} {{.Ports}}'
        docker ps -a --format 'table {{.Names}}\\t{{.Label "a"}}'
        docker ps -a --format '{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.State}}'
        docker ps -a --format '{{json .Command}}'
        docker ps -a --format '{{.NoSuch}}'
        docker ps -l --format '{{.Names}}'
        docker ps -n 2 --format '{{.Names}}'
        docker ps -as --format '{{.Names}} {{.Size}}'
        docker ps -a --filter name=o --format '{{.Names}}'
        docker ps -a --filter name=^one$ --format '{{.Names}}'
        docker ps -a --filter name=^/two$ --format '{{.Names}}'
        docker ps -a --filter status=exited --format '{{.Names}}'
        docker ps -a --filter status=created --filter status=running --format '{{.Names}}'
        docker ps -a --filter exited=3 --format '{{.Names}}'
        docker ps -a --filter label=a --format '{{.Names}}'
        docker ps -a --filter label=a=2 --format '{{.Names}}'
        docker ps -a --filter label=a --filter label=b=2 --format '{{.Names}}'
        docker ps -a --filter ancestor=busybox --format '{{.Names}}'
        docker ps -a --filter ancestor=nosuch --format '{{.Names}}'
        docker ps -a --filter volume=named --format '{{.Names}}'
        docker ps -a --filter volume=/v --format '{{.Names}}'
        docker ps -a --filter network=bridge --format '{{.Names}}'
        docker ps -a --filter publish=8081/tcp --format '{{.Names}}'
        docker ps -a --filter publish=80 --format '{{.Names}}'
        docker ps -a --filter expose=90 --format '{{.Names}}'
        docker ps -a --filter health=none --format '{{.Names}}'
        docker ps -a --filter is-task=false --format '{{.Names}}'
        docker ps -a --filter before=two --format '{{.Names}}'
        docker ps -a --filter since=two --format '{{.Names}}'
        docker ps -a --filter before=nosuch
        docker ps -a --filter since=nosuch
        docker ps -a --filter status=nosuch
        docker ps -a --filter health=nosuch
        docker ps -a --filter exited=x
        docker ps -a --filter publish=x
        docker ps -a --filter nosuch=x
        docker ps -a --filter is-task=x
        docker ps -n xx
        docker rm -f -v one two three four
        docker volume rm named
        docker ps -a
    """,
    "inspect": """
        docker create --name aa --label x=y -e A=b -p 8081:80 -v /tmp:/t:ro --restart on-failure:3 --memory 64m busybox echo hi
        docker volume create vv
        docker inspect aa
        docker inspect --format '{{.Name}} {{.Config.Image}} {{.State.Status}}' aa
        docker inspect --format '{{json .Config}}' aa
        docker inspect --format '{{json .NetworkSettings}}' aa
        docker inspect -s --format '{{.SizeRw}}' aa
        docker inspect --format '{{.NoSuch}}' aa
        docker inspect --format '{{nosuch' aa
        docker inspect nosuch
        docker inspect aa nosuch
        docker inspect --type container nosuch
        docker inspect --type image nosuch
        docker inspect --type network nosuch
        docker inspect --type volume nosuch
        docker inspect --type nosuch nosuch
        docker inspect --type plugin nosuch
        docker inspect --type image --format '{{.RepoTags}}' busybox web
        docker inspect --format '{{.Name}}' bridge vv
        docker image inspect busybox
        docker image inspect nosuch
        docker network inspect bridge
        docker network inspect nosuch
        docker volume inspect vv
        docker volume inspect vv nosuch
        docker container inspect --format '{{.Id}}' $(docker ps -aq)
        docker container inspect nosuch
        docker rm aa
        docker volume rm vv
    """,
    "logs": """
        docker run --name aa busybox sh -c 'echo 1; echo two >&2; sleep 0.1; echo 3'
        docker logs aa
        docker logs --tail 1 aa
        docker logs --tail 0 aa
        docker logs --tail xx aa
        docker logs -t aa
        docker logs --details aa
        docker logs -f aa
        docker logs --since 1h aa
        docker logs --since 2000-01-01T00:00:00 aa
        docker logs --until 1h aa
        docker logs --since nosuch aa
        docker logs nosuch
        docker run -d --name bb busybox sh -c 'echo a; sleep 0.4; echo b'
        docker logs -f bb
        docker run --name tt -t busybox echo tty
        docker logs tt
        docker run --name nn --log-driver none busybox echo hi
        docker logs nn
        docker rm aa bb tt nn
    """,
    "exec": """
        docker run -d --name aa busybox sleep 1000
        docker exec aa echo hi
        docker exec aa sh -c 'echo err >&2; exit 9'
        docker exec -e X=1 -w /tmp -u nobody aa sh -c 'echo $X; pwd; id -un'
        echo piped | docker exec -i aa cat
        docker exec -d aa touch /made
        docker exec aa nosuchprogram
        docker exec aa /etc/passwd
        docker exec -w /nosuch aa true
        docker exec -u nosuch aa true
        docker exec -t aa true
        docker exec --privileged aa true
        docker exec aa
        docker exec nosuch true
        docker top aa | awk '{print $1, $NF}'
        docker top aa -o comm,args
        docker top aa -o nosuch
        docker stop -t 0 aa
        docker exec aa true
        docker top aa
        docker top nosuch
        docker attach aa
        docker attach nosuch
        docker rm aa
        docker create -i --name bb busybox cat
        echo hello | docker start -ai bb
        docker start -ai nosuch
        docker run -d --name cc busybox sh -c 'sleep 0.7; echo bye; exit 4'
        docker attach --no-stdin cc
        docker run -d --name dd -i busybox sh -c 'read x; echo got $x'
        echo word | docker attach dd >/dev/null
        docker wait dd
        docker logs dd
        docker rm bb cc dd
    """,
    "cp": """
        docker create --name aa busybox sh -c 'cat /dir/sub/two; echo new >/made'
        mkdir -p dir/sub; echo one >dir/one; echo two >dir/sub/two
        docker cp dir aa:/
        docker cp dir/one aa:/etc/passwd
        docker cp aa:/dir copied
        find copied | sort
        docker cp aa:/dir/one - | tar t
        tar c -C dir one | docker cp - aa:/tmp
        docker cp aa:/tmp/one got
        cat got
        docker cp aa:/nosuch .
        docker cp nosuch aa:/
        docker cp dir aa:/no/such/
        docker cp dir aa:/etc/passwd 2>&1 | grep -v level=error
        docker cp aa:/x nosuch:/x
        docker cp nosuch:/x .
        docker cp dir nosuch:/x
        docker cp dir dir
        docker cp aa:/dir /no/such/dir
        docker start -a aa
        docker diff aa | sort
        docker diff nosuch
        docker export aa | tar t made dir/sub/two
        docker export -o file aa
        docker export nosuch
        docker export nosuch -o file2
        docker cp -L aa:/bin/ls ls
        wc -c ls | grep -c ' ls'
        docker rm aa
    """,
    "commit": """
        docker create --name aa busybox sh -c 'echo kept >/kept'
        docker start -a aa
        docker commit -m words -a me -c 'CMD ["cat","/kept"]' aa made:1
        docker inspect --format '{{.Comment}} {{.Author}} {{.Config.Cmd}}' made:1
        docker run --name bb made:1
        docker history --format '{{.CreatedBy}}|{{.Comment}}' made:1
        docker commit aa
        docker images -q -f dangling=true
        docker commit nosuch made:2
        docker commit aa Made
        docker commit -c 'NOSUCH x' aa made:2
        docker image prune -f
        docker rename aa cc
        docker rename cc cc
        docker rename cc bb
        docker rename nosuch xx
        docker rename cc 'a b'
        docker rename cc ''
        docker ps -a --format '{{.Names}} {{.Image}}'
        docker update --memory 32m --memory-swap 32m cc
        docker inspect --format '{{.HostConfig.Memory}}' cc
        docker update --restart always cc
        docker update --cpu-shares 512 cc nosuch
        docker update --memory 1 cc
        docker update --restart nosuch cc
        docker update cc
        docker update nosuch --memory 32m
        docker rmi made:1
        docker rm cc bb
        docker rmi made:1
        docker rmi made:1
    """,
    "port": """
        docker run -d --name aa -p 8081:80 -p 127.0.0.1:8082:81/udp -p 90 busybox sleep 1000
        docker port aa
        docker port aa 80
        docker port aa 81/udp
        docker port aa 82
        docker port aa 80/nosuch
        docker port nosuch
        docker inspect --format '{{json .HostConfig.PortBindings}}' aa
        docker stats --no-stream --format '{{.Name}} {{.PIDs}}' aa
        docker stats --no-stream nosuch
        docker rm -f aa
    """,
    "links": """
        docker run -d --name aa -e SECRET=word --expose 81 busybox sleep 1000
        docker create --name bb --link aa:db busybox true
        docker inspect --format '{{.HostConfig.Links}}' bb
        docker run --rm --name cc --link aa:db busybox sh -c 'env | grep ^DB_ | sort'
        docker run --rm --name cc --link aa busybox sh -c 'env | grep ^AA_ | sort'
        docker run --rm --name cc --link aa:db busybox sh -c 'grep -o "[[:space:]]db .*" /etc/hosts'
        docker run --name cc --link aa:xx:yy busybox true
        docker run --name cc --link nosuch:db busybox true
        docker stop -t 0 aa
        docker start bb
        docker rm --link bb/db
        docker rm --link bb/nosuch
        docker rm --link nosuch/db
        docker rm -f aa bb cc
    """,
    "events": """
        docker create --name aa --label x=y busybox true
        docker start -a aa
        docker rename aa bb
        docker volume create vv
        docker network create nn
        docker network rm nn
        docker volume rm vv
        docker rm bb
        ENDED=$(date +%s.%N)
        docker events --since $BEGAN --until $ENDED --filter type=container --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'
        docker events --since $BEGAN --until $ENDED --filter type=container --filter event=create
        docker events --since $BEGAN --until $ENDED --filter container=bb --format '{{.Action}}'
        docker events --since $BEGAN --until $ENDED --filter type=volume --format '{{.Type}} {{.Action}}'
        docker events --since $BEGAN --until $ENDED --filter type=network --filter event=create --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'
        docker events --since $BEGAN --until $ENDED --filter label=x=y --format '{{.Action}}'
        docker events --since $BEGAN --until $ENDED --filter image=busybox --filter event=die --format '{{.Actor.Attributes.exitCode}}'
        docker events --since nosuch
        docker events --since $BEGAN --until $ENDED --filter type=nosuch
        docker events --since $ENDED --until $BEGAN
    """,
    "images": """
        docker images
        docker image ls --no-trunc --digests
        docker images -q
        docker images busy*
        docker images nosuch
        docker images --format '{{.Repository}}:{{.Tag}} {{.ID}}'
        docker images --filter dangling=true
        docker images --filter before=web --format '{{.Repository}}'
        docker images --filter since=busybox --format '{{.Repository}}'
        docker images --filter reference='*:latest' --format '{{.Repository}}'
        docker images --filter label=nosuch
        docker images --filter nosuch=x
        docker images --filter before=nosuch
        docker images --filter dangling=x
        docker images -a -q
        docker history busybox
        docker history --no-trunc -q busybox
        docker history nosuch
        docker tag busybox one:1
        docker tag busybox two
        docker tag nosuch xx
        docker tag busybox Bad
        docker tag busybox 127.0.0.1:5/x/y:zz
        docker images --format '{{.Repository}}:{{.Tag}}' | sort
        docker create --name aa one:1
        docker rmi one:1
        docker tag web kept
        docker rmi web
        docker tag kept web
        docker rmi kept
        docker rmi nosuch two
        docker rmi -f nosuch
        docker rmi one:1
        docker rmi $(docker images -q one)
        docker rm aa
        docker rmi 127.0.0.1:5/x/y:zz
        docker rmi 127.0.0.1:5/x/y:zz
        docker images --format '{{.Repository}}:{{.Tag}}' | sort
        docker image rm
    """,
    "save": """
        docker save busybox | tar t | grep -c .
        docker save -o both busybox web
        tar xf both manifest.json; grep -o '"RepoTags":[^]]*' manifest.json | sort
        docker save nosuch -o no
        docker save busybox nosuch -o no
        docker tag busybox copy:1
        docker save -o copy copy:1
        docker rmi copy:1
        docker load -i copy
        docker load -q -i copy
        docker load <copy
        docker load -i nosuch
        echo bad | docker load
        docker images --format '{{.Repository}}:{{.Tag}}' | sort
        docker run --rm --name aa copy:1 echo loaded
        docker rmi copy:1
        docker create --name aa busybox true
        docker export aa -o root.tar
        docker import -m words -c 'CMD echo cmd' root.tar made:1
        docker inspect --format '{{.Comment}} {{.Config.Cmd}}' made:1
        docker run --rm --name bb made:1
        cat root.tar | docker import - made:2
        docker import nosuch
        docker import root.tar Bad
        echo bad | docker import -c 'NOSUCH x' - made:3
        docker import http://127.0.0.1:5/x made:3
        docker images made --format '{{.Repository}}:{{.Tag}}' | sort
        docker rmi made:1 made:2 >/dev/null
        docker rm aa
    """,
    "build": """
        mkdir dir; echo content >dir/file
        printf 'FROM busybox\\nCOPY file /file\\nRUN cat /file >/ran\\nENV A=b\\nCMD ["cat","/ran"]\\n' >dir/Dockerfile
        docker build -t made dir
        docker build -q -t made dir
        docker run --rm --name aa made
        docker build --label x=y --build-arg NOSUCH=1 -t made:2 dir
        docker images --format '{{.Repository}}:{{.Tag}}' --filter label=x=y
        docker history --format '{{.CreatedBy}}' made
        printf 'FROM busybox\\nRUN exit 3\\n' | docker build --rm -
        printf 'FROM nosuch:never\\n' | docker build --force-rm -
        printf 'NOSUCH x\\n' | docker build -
        printf 'FROM busybox AS one\\nRUN echo xx >/x\\nFROM busybox\\nCOPY --from=one /x /y\\n' | docker build -q -
        printf 'FROM busybox\\nCOPY nosuch /\\n' >dir/Other
        docker build -f dir/Other dir
        docker build -f dir/nosuch dir
        docker build nosuch
        docker build --target nosuch dir
        docker build -t Bad dir
        docker rm $(docker ps -aq --filter ancestor=busybox) | wc -l
        docker rmi made made:2 >/dev/null
        docker image prune -f >/dev/null
        docker builder prune -f
        docker images --format '{{.Repository}}:{{.Tag}}'
    """,
    "registry": """
        docker pull 127.0.0.1:5/nosuch:1
        docker pull -q 127.0.0.1:5/nosuch
        docker pull 127.0.0.1:5/nosuch@sha256:0000000000000000000000000000000000000000000000000000000000000000
        docker pull -a 127.0.0.1:5/nosuch
        docker pull Bad
        docker pull nosuch
        docker pull --platform nosuch/nosuch 127.0.0.1:5/nosuch
        docker push nosuch
        docker tag busybox 127.0.0.1:5/x
        docker push 127.0.0.1:5/x
        docker push -q 127.0.0.1:5/x
        docker push 127.0.0.1:5/x:nosuch
        docker push -a 127.0.0.1:5/nosuch
        docker rmi 127.0.0.1:5/x
        docker search nosuch
        docker search 127.0.0.1:5/nosuch
        docker login -u aa -p bb 127.0.0.1:5
        docker logout 127.0.0.1:5
        docker run --name aa 127.0.0.1:5/nosuch
        docker create --name aa --pull always busybox
    """,
    "networks": """
        docker network ls
        docker network ls --filter driver=bridge --format '{{.Name}}'
        docker network create nn
        docker network create nn
        docker network create --subnet 10.99.0.0/24 --gateway 10.99.0.1 --label x=y --internal mm
        docker network ls --no-trunc --format '{{.ID}} {{.Name}} {{.Driver}} {{.Scope}} {{.Internal}}'
        docker network ls --filter name=n -q
        docker network ls --filter label=x=y --format '{{.Name}}'
        docker network ls --filter type=custom --format '{{.Name}}'
        docker network ls --filter dangling=true --format '{{.Name}}'
        docker network ls --filter nosuch=x
        docker network inspect mm
        docker network inspect --format '{{.Id}}' nn mm
        docker run -d --name aa --network nn --network-alias al busybox sleep 1000
        docker network inspect --format '{{range .Containers}}{{.Name}}{{end}}' nn
        docker network connect mm aa
        docker network connect --ip 10.99.0.99 mm aa
        docker network connect bridge aa
        docker inspect --format '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.Aliases}} {{end}}' aa
        docker ps --filter network=mm --format '{{.Names}}'
        docker network rm mm
        docker network disconnect mm aa
        docker network disconnect mm aa
        docker network disconnect nn nosuch
        docker network disconnect nosuch aa
        docker network connect nosuch aa
        docker network connect nn nosuch
        docker network disconnect -f nn aa
        docker network disconnect -f nn nosuch
        docker network rm nn nosuch
        docker rm -f aa
        docker create --name bb --network mm --ip 10.99.0.7 busybox true
        docker create --name cc --network mm --ip 10.98.0.7 busybox true
        docker network rm mm
        docker network rm mm
        docker start -a bb
        docker rm bb cc
        docker network create --subnet nosuch oo
        docker network create --subnet 10.97.0.0/24 --gateway 10.1.1.1 oo
        docker network create 'a b'
        docker network create bridge
        docker network rm bridge
        docker network rm host
        docker network create -d host oo
        docker network create -d macvlan -o parent=nosuch0 oo
        docker network create pp
        docker network prune -f | sort
        docker network prune -f
        docker network prune -f --filter nosuch=x
        docker network ls --format '{{.Name}}'
    """,
    "volumes": """
        docker volume create vv
        docker volume create vv
        docker volume create --label x=y ww
        docker volume create 'a b'
        docker volume create -o type=nosuch xx
        docker volume rm xx
        docker volume ls
        docker volume ls -q --filter label=x=y
        docker volume ls -q --filter name=v
        docker volume ls -q --filter driver=local
        docker volume ls -q --filter dangling=true
        docker volume ls -q --filter nosuch=x
        docker volume ls -q --filter dangling=x
        docker volume ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}}'
        docker volume inspect --format '{{.Name}} {{.Labels}}' vv ww
        docker run --rm --name aa -v vv:/v busybox sh -c 'echo kept >/v/file'
        docker run --rm --name aa -v vv:/v:ro busybox sh -c 'cat /v/file; touch /v/x'
        docker create --name bb -v vv:/v -v /anonymous busybox
        docker inspect --format '{{range .Mounts}}{{.Type}} {{.Destination}} {{.RW}}{{println}}{{end}}' bb | sort
        docker volume rm vv
        docker volume rm vv nosuch
        docker volume rm nosuch
        docker volume rm -f nosuch
        docker volume prune -f
        docker volume ls -q
        docker rm bb
        docker volume prune -f | grep -c .
        docker volume prune -f
        docker volume prune -f --filter nosuch=x
        docker volume create ww
        docker volume rm ww
        docker create --name cc -v new:/n busybox
        docker volume ls -q
        docker rm -v cc
        docker volume rm new
        docker create --name cc --mount type=volume,source=mm,target=/m busybox
        docker rm cc
        docker volume rm mm
        docker create --name cc --mount type=nosuch,target=/m busybox
        docker create --name cc -v 'aa bb:/x' busybox
        docker create --name cc -v xx:/x -v yy:/x busybox
        docker volume rm -f xx yy
    """,
    "prune": """
        docker create --name aa busybox true
        docker run -d --name bb busybox sleep 1000
        docker container prune -f --filter label=nosuch
        docker container prune -f
        docker container prune -f
        docker container prune -f --filter nosuch=x
        docker image prune -f
        docker image prune -f --filter until=nosuch
        docker tag busybox one:1
        docker rmi -f one:1
        docker network create nn
        docker system df --format '{{.Type}} {{.TotalCount}} {{.Active}}'
        docker system df -v | grep -c .
        docker system df
        docker create --name cc busybox true
        docker volume create vv
        docker system prune -f
        docker system prune -f --volumes
        docker volume ls -q
        docker network ls --format '{{.Name}}'
        docker builder prune -f
        docker builder prune -a -f
        docker rm -f bb
        docker volume prune -f
        docker image prune -f --filter nosuch=x
        docker system prune -f --filter nosuch=x
    """,
    "system": """
        docker info >/dev/null
        docker info --format '{{.Containers}} {{.ContainersRunning}} {{.Images}} {{.OSType}}'
        docker info --format '{{.Swarm.LocalNodeState}} {{.CgroupDriver}} {{.DefaultRuntime}}'
        docker info --format '{{.Name}}'
        docker info --format '{{.Driver}} {{.ServerVersion}}' | grep -o 'arpanet .*/'
        docker info --format '{{.NoSuch}}'
        docker version >/dev/null
        docker version --format '{{.Client.Version}} {{.Client.APIVersion}}'
        docker version --format '{{.Server.Version}} {{.Server.APIVersion}} {{.Server.MinAPIVersion}}'
        docker version --format '{{.Server.Os}}/{{.Server.Arch}} {{.Server.KernelVersion}}'
        docker version --format '{{.Server.Platform.Name}}' | grep -o 'arpanet.*'
        docker version --format '{{.Server.GitCommit}}{{.Server.GoVersion}}' | grep -c .
        docker version --format '{{range .Server.Components}}{{println .Name}}{{end}}'
        docker system info --format '{{.OSType}}'
        docker nosuch
        docker container nosuch
        docker ps extra
        docker checkpoint ls nosuch
        docker context ls --format '{{.Name}}'
    """,
    "swarm": """
        docker swarm join-token worker
        docker swarm leave
        docker swarm update --autolock
        docker service ls
        docker service create busybox
        docker node ls
        docker node inspect self
        docker stack ls
        docker secret ls
        docker config ls
        docker inspect --type service nosuch
        docker inspect --type secret nosuch
        docker plugin ls
        docker plugin install --grant-all-permissions nosuch
        docker plugin inspect nosuch
        docker plugin rm nosuch
        docker plugin enable nosuch
    """,
    "clean": """
        docker ps -a --format '{{.Names}} {{.Status}}'
        docker images --format '{{.Repository}}:{{.Tag}}'
        docker volume ls -q
        docker network ls --format '{{.Name}}'
    """,
}


class Difference(NamedTuple):
    """What arpanet says otherwise than an engine, to which command and why.

    lines: the diff: - of the engine, + of arpanet, ! before what is an error's words.
    cli: of one client only, else of all.
    """

    command: str
    lines: str
    reason: str
    cli: str = ""


NO_SWARM = (
    'Error response from daemon: This node is not a swarm manager. Use "docker swarm init" or '
    '"docker swarm join" to connect this node to swarm and try again.'
)
NO_PLUGIN = 'Error response from daemon: plugin "nosuch" not found'
NO_REGISTRY = (
    "Error response from daemon: error resolving plugin reference: failed to do request: "
    'Head "https://registry-1.docker.io/v2/library/nosuch/manifests/latest": dial tcp: '
    "lookup registry-1.docker.io on 127.0.0.1:53: read udp 127.0.0.1:PORT->127.0.0.1:53: read: "
    "connection refused"
)


def refusal(request: str) -> str:
    """Return the words about a request that is not offered."""
    return (
        f"Error response from daemon: {request} is not supported by arpanet VERSION; "
        "use it on the host itself: docker -H unix:///var/run/docker.sock …"
    )


REFUSED = [
    (NO_SWARM, "docker swarm join-token worker", "GET /swarm"),
    (
        "Error response from daemon: This node is not part of a swarm",
        "docker swarm leave",
        "POST /swarm/leave",
    ),
    (NO_SWARM, "docker swarm update --autolock", "GET /swarm"),
    (NO_SWARM, "docker service ls", "GET /services"),
    (NO_SWARM, "docker service create busybox", "POST /services/create"),
    (NO_SWARM, "docker node ls", "GET /nodes"),
    (NO_SWARM, "docker stack ls", "GET /services"),
    (NO_SWARM, "docker secret ls", "GET /secrets"),
    (NO_SWARM, "docker config ls", "GET /configs"),
    (NO_SWARM, "docker inspect --type service nosuch", "GET /services/nosuch"),
    (NO_SWARM, "docker inspect --type secret nosuch", "GET /secrets/nosuch"),
    (
        NO_REGISTRY,
        "docker plugin install --grant-all-permissions nosuch",
        "GET /plugins/privileges",
    ),
    (NO_PLUGIN, "docker plugin enable nosuch", "POST /plugins/nosuch/enable"),
]

DIFFERENCES = [
    *(
        Difference(
            "docker rm net",
            f"-net\n-exit 0\n+! {words}: No such container: net\n+exit 1",
            "what shares another's network goes to its host, so without one it is not created",
            cli,
        )
        for cli, words in (("docker28", "Error response from daemon"), ("docker20", "Error"))
    ),
    Difference(
        "docker run --name net --network container:nosuch busybox true",
        "+! See 'docker run --help'.",
        "the client says so after an error of create, which this is, and not after one of start",
        "docker20",
    ),
    Difference(
        "docker ps -a --format '{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.LocalVolumes}}|{{.State}}'",
        """
        -|named|bridge|1|created
        +arpanet.volumes=named|named|bridge|1|created
        """,
        "a label records which volumes are the container's",
    ),
    Difference(
        "docker inspect aa",
        """
        +  },
        +  "Host": {
        +  "Name": "HOST",
        +  "IP": "IP"
        """,
        "inspect says on which host a container is",
    ),
    Difference(
        "docker inspect aa nosuch",
        """
        +  },
        +  "Host": {
        +  "Name": "HOST",
        +  "IP": "IP"
        """,
        "inspect says on which host a container is",
    ),
    Difference(
        "docker run --rm --name cc --link aa:db busybox sh -c 'grep -o \"[[:space:]]db .*\" /etc/hosts'",
        """
        -\tdb ID0 aa
        -exit 0
        +exit 1
        """,
        "each name of a link has a line of its own in /etc/hosts",
    ),
    Difference(
        "docker start bb",
        """
        -! Error response from daemon: Cannot link to a non running container: /aa AS /bb/db
        -! Error: failed to start containers: bb
        -exit 1
        +bb
        +exit 0
        """,
        "a link leads to its target whenever that runs, so it need not run yet",
    ),
    Difference(
        "docker rm --link bb/db",
        """
        -bb/db
        -exit 0
        +! Error response from daemon: taking a link off is not supported: remove bb and run it again without
        +exit 1
        """,
        "a link is a part of the container that was made with it",
    ),
    Difference(
        "docker events --since $BEGAN --until $ENDED --filter type=container --filter event=create",
        """
        -TIME container create ID0 (image=busybox, name=aa, x=y)
        +TIME container create ID0 (host=HOST, image=busybox, name=aa, x=y)
        """,
        "an event says on which host it was",
    ),
    Difference(
        "docker events --since $BEGAN --until $ENDED --filter type=network --filter event=create --format '{{.Type}} {{.Action}} {{.Actor.Attributes.name}}'",
        """
        +network create nn
        +network create nn
        """,
        "a network is made on each host, and each host says so",
    ),
    Difference(
        "docker info --format '{{.Name}}'",
        """
        -c1
        +arpanet
        """,
        "it is not one machine",
    ),
    Difference(
        "docker info --format '{{.Driver}} {{.ServerVersion}}' | grep -o 'arpanet .*/'",
        """
        -exit 1
        +arpanet arpanet/
        +exit 0
        """,
        "hosts may differ in both; the lines below Driver tell each host's",
    ),
    Difference(
        "docker version --format '{{.Server.Platform.Name}}' | grep -o 'arpanet.*'",
        """
        -exit 1
        +arpanet VERSION (3 hosts)
        +exit 0
        """,
        "so that a person sees what answers",
    ),
    Difference(
        "docker version --format '{{.Server.GitCommit}}{{.Server.GoVersion}}' | grep -c .",
        """
        -1
        -exit 0
        +0
        +exit 1
        """,
        "arpanet is not built with Go",
    ),
    Difference(
        "docker version --format '{{range .Server.Components}}{{println .Name}}{{end}}'",
        """
        -containerd
        -runc
        -docker-init
        +arpanet
        +Host h1
        +Host h2
        +Host h3
        """,
        "each host's engine is a component; what they consist of differs",
    ),
    *(
        Difference(command, f"-! {lacks}\n+! {refusal}", "swarm and plugins are not offered", cli)
        for command, cli, lacks, refusal in (
            (
                "docker node inspect self",
                "docker28",
                NO_SWARM,
                refusal("GET /nodes"),
            ),
            (
                "docker node inspect self",
                "docker20",
                f"Status: {NO_SWARM}, Code: 1",
                f"Status: {refusal('GET /nodes')}, Code: 1",
            ),
            (
                "docker plugin rm nosuch",
                "docker28",
                NO_PLUGIN,
                refusal("DELETE /plugins/nosuch"),
            ),
            (
                "docker plugin rm nosuch",
                "docker20",
                "Error: No such plugin: nosuch",
                refusal("DELETE /plugins/nosuch"),
            ),
            *((command, "", lacks, refusal(request)) for lacks, command, request in REFUSED),
        )
    ),
]


class Said(NamedTuple):
    """A command and all it said, in lines."""

    command: str
    lines: list[str]


SHAPES = [
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?[+-]\d\d:?\d\d( [A-Z]+)?)?", "TIME"),
    (r"(Less than|About) an? (second|minute|hour)( ago)?", "AGO"),
    (r"\b\d+ (seconds?|minutes?|hours?|days?|weeks?|months?|years?)( ago)?", "AGO"),
    (r"@h[1-3]\b", ""),
    (r"\barpanet[ /]\d+\.\d+\.\d+", "arpanet VERSION"),
    (r"(?<=host=)h[1-3]\b|(?<=\")h[1-3](?=\")", "HOST"),
    (r"contract-(engine|arpanet)", "contract"),
    (r"\b\d{10}\.\d+\b", "TIME"),
    (r"\b\d+(\.\d+)?(e[+-]\d+)? ?([kMGT]i?)?B\b", "SIZE"),
    (r"\b172\.\d+\.\d+\.\d+|\b192\.168\.\d+\.\d+|\b198\.1[89]\.\d+\.\d+", "IP"),
    (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"(?<=:)(3[2-9]\d{3}|[45]\d{4}|6[0-5]\d{3})\b", "PORT"),
    (r"^.* level=error msg=\"error waiting for container: context canceled\"\n", ""),  # at random
    (r"-{3,}", "---"),
    (r"[ \t]{2,}", "  "),
    (r"\s+$", ""),
]


def normal(text: str, ids: dict[str, str]) -> list[str]:
    """Return the lines of a text without what must differ; ids are numbered as they come."""

    def number(match: re.Match[str]) -> str:
        return ids.setdefault(match[0][:12], f"ID{len(ids)}")

    for pattern, word in SHAPES:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    text = re.sub(r"\b([0-9a-f]{64}|[0-9a-f]{12})\b", number, text)
    return text.splitlines()


def talk(lab: Lab, backend: str, cli: str, scenario: str) -> list[Said]:
    """Run a scenario on c1 and return what each command said, normalised."""
    urls = {"engine": "unix:///var/run/docker.sock", "arpanet": f"tcp://{lab['h1'].ip}:8791"}
    work = f"/run/contract-{backend}"
    commands = [line.strip() for line in SCENARIOS[scenario].strip().splitlines()]
    lab.client.path(work).mkdir(exist_ok=True)
    lab.client.path(f"{work}/lines").write_text("\n".join(commands) + "\n")
    env = {"DOCKER_HOST": urls[backend], "CLI": CLIS[cli], "WORK": work, "DOCKER_BUILDKIT": "0",
           "DOCKER_CLI_HINTS": "false"}  # fmt: skip
    lab.client.run(["sh", "-c", DRIVER], env=env, timeout=300)
    ids: dict[str, str] = {}
    said = []
    for index, command in enumerate(commands, 100):
        out, err, code = (
            lab.client.path(f"{work}/out/{index}.{stream}").read_text(errors="replace")
            for stream in (1, 2, 3)
        )
        errors = [f"! {line}" for line in normal(err, ids)]
        said.append(Said(command, [*normal(out, ids), *errors, f"exit {code.strip()}"]))
    return said


def differences(engine: list[str], arpanet: list[str]) -> list[str]:
    """Return the lines of the diff of two answers."""
    lines = difflib.unified_diff(engine, arpanet, n=0, lineterm="")
    return [line for line in list(lines)[2:] if not line.startswith("@@")]


def listed(command: str, cli: str) -> list[str]:
    """Return the diff that is listed for a command."""
    found = [d for d in DIFFERENCES if d.command == command and d.cli in ("", cli)]
    return [line.strip() for d in found for line in d.lines.strip().splitlines()]


def wipe(lab: Lab) -> None:
    """Remove from both backends what a failed scenario left."""
    words = (
        "docker rm -f -v $(docker ps -aq); docker network prune -f; docker volume prune -f; "
        "docker rmi -f $(docker images --format '{{.Repository}}:{{.Tag}}' "
        "| grep -v -e ^web: -e ^busybox:); docker image prune -f; true"
    )
    for url in ("unix:///var/run/docker.sock", f"tcp://{lab['h1'].ip}:8791"):
        lab.client.run(["sh", "-c", words], env={"DOCKER_HOST": url})


@pytest.fixture(scope="module")
def two(net: Lab) -> Iterator[Lab]:
    """Yield the lab with arpanet on three hosts, and a bare engine on c1."""
    net.client.start_engine()
    net.client.load_images(cached_images())
    yield net
    net.client.stop_engine()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("cli", CLIS)
def test_the_docker_cli_says_what_it_says_of_one_engine(two: Lab, cli: str, scenario: str) -> None:
    if not shutil.which(CLIS[cli], path=PATH):
        pytest.skip(f"{CLIS[cli]} is not installed")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        engine, arpanet = pool.map(
            lambda backend: talk(two, backend, cli, scenario), ("engine", "arpanet")
        )
    wrong = []
    for one, other in zip(engine, arpanet, strict=True):
        found, expected = differences(one.lines, other.lines), listed(one.command, cli)
        if [line.strip() for line in found] != expected:
            words = ["listed, but now:" if expected else "not listed:", *(found or ["the same"])]
            wrong.append("\n    ".join([f"$ {one.command}", *words]))
    if wrong:
        wipe(two)
    assert not wrong, "\n" + "\n".join(wrong)


def test_each_listed_difference_is_of_a_command_that_is_run() -> None:
    run = {line.strip() for text in SCENARIOS.values() for line in text.splitlines()}
    assert [d for d in DIFFERENCES if d.command not in run or not d.reason] == []
